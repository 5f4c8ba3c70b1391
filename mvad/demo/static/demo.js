const AT_ONCE = 2; // requests that are under way
const byId = (id) => document.getElementById(id);
const list = byId("list");
const waiting = [];
const counts = { all: 0, done: 0 };
let running = 0;
let offers = new Map();
let limits = null;

async function start() {
  byId("endpoint").textContent = new URL("score", location.href).href;
  try {
    const answer = await fetch("categories");
    const content = await answer.json();
    offers = new Map(content.categories.map((offer) => [offer.category, offer]));
    limits = content.limits;
  } catch {
    byId("trouble").textContent = "The server does not answer; reload this page when it does.";
    return;
  }
  const select = byId("category");
  for (const name of offers.keys()) {
    select.add(new Option(name, name));
  }
  if (offers.size === 1) {
    select.value = [...offers.keys()][0];
  }
  byId("limits").textContent =
    `PNG, JPEG, BMP, TIFF or WebP, up to ${megabytes(limits.upload_bytes)} and ${megapixels(limits.pixels)} each.`;
  describe();
}

function describe() {
  const offer = offers.get(byId("category").value);
  byId("about").textContent = offer
    ? `${offer.method} on ${offer.backbone}, ${offer.image_size} pixels, learnt from ${offer.n_train ?? "some"} good ` +
      `images. ${offer.promise ? sentence(offer.promise) : "It was not calibrated: there is no threshold."}`
    : `An image is compared with all ${offers.size} categories, and scored as the nearest.`;
}

function add(files) {
  const category = byId("category").value;
  const items = [...files].map((file) => ({ file, category, element: placeholder(file.name) }));
  list.prepend(...items.map((item) => item.element));
  waiting.push(...items);
  counts.all += items.length;
  progress();
  for (let free = AT_ONCE - running; free > 0; free--) {
    work();
  }
}

async function work() {
  const item = waiting.shift();
  if (!item) {
    return;
  }
  running++;
  try {
    show(item.element, await score(item.file, item.category));
  } catch {
    show(item.element, { status: "error", error: "The server does not answer; is it still running?" });
  }
  running--;
  if (item.element.isConnected) {
    counts.done++;
    progress();
  }
  work();
}

async function score(file, category) {
  if (limits && file.size > limits.upload_bytes) {
    return { status: "error", error: `the file is larger than the ${megabytes(limits.upload_bytes)} allowed` };
  }
  const form = new FormData();
  form.append("images", file, file.name || "image");
  form.append("category", category);
  form.append("pictures", "true");
  const answer = await fetch("score", { method: "POST", body: form });
  const content = await answer.json();
  return content.images?.[0] ?? { status: "error", error: content.error };
}

function placeholder(name) {
  const element = byId("result").content.firstElementChild.cloneNode(true);
  element.setAttribute("aria-busy", "true");
  element.querySelector(".name").textContent = name;
  element.querySelector(".badge").textContent = "Waiting";
  return element;
}

function show(element, result) {
  const find = (selector) => element.querySelector(selector);
  element.removeAttribute("aria-busy");
  const [word, look, why] = verdict(result);
  find(".badge").textContent = word;
  find(".badge").classList.add(look);
  find(".why").textContent = why;
  for (const [term, value] of facts(result)) {
    find(".facts").append(tag("dt", term), tag("dd", value));
  }
  const name = find(".name").textContent;
  if (result.picture) {
    find(".image").src = result.picture;
    find(".image").alt = name;
    find(".stack").hidden = false;
  }
  if (result.map) {
    const map = find(".map");
    const slider = find(".opacity input");
    const apply = () => {
      map.style.opacity = slider.value / 100;
      find(".opacity output").textContent = `${slider.value} %`;
    };
    map.src = result.map;
    map.alt = `Anomaly map of ${name}`;
    map.hidden = false;
    slider.setAttribute("aria-label", `Opacity of the map of ${name}`);
    slider.addEventListener("input", apply);
    find(".opacity").hidden = false;
    find(".legend").hidden = result.threshold === null;
    apply();
  }
}

function verdict(result) {
  if (result.status !== "ok") {
    return ["Not scored", "failed", sentence(result.error ?? "the server gives no reason")];
  }
  if (result.is_anomaly === null) {
    return ["No verdict", "open", "The model was not calibrated, so that there is no threshold."];
  }
  return result.is_anomaly
    ? ["Anomalous", "bad", "Its score is above the threshold."]
    : ["Looks good", "fine", "Its score is not above the threshold."];
}

function facts(result) {
  if (result.status !== "ok") {
    return [];
  }
  const found = [["Category", result.category + (result.guessed ? guessed(result) : "")]];
  found.push(["Score", number(result.score)]);
  if (result.threshold !== null) {
    found.push(["Threshold", number(result.threshold)]);
  }
  if (result.p_value !== null) {
    found.push(["p-value", pValue(result)]);
  }
  found.push(["Image", `${result.width} x ${result.height} pixels`]);
  return found;
}

function guessed(result) {
  const next = result.candidates?.[1];
  return next ? `, guessed (next: ${next.category})` : ", guessed";
}

function pValue(result) {
  const n = offers.get(result.category)?.n_calibration;
  if (!n) {
    return number(result.p_value);
  }
  const higher = Math.round(result.p_value * (n + 1)) - 1;
  return `${number(result.p_value)}: ${higher || "none"} of ${n} good images scored as high`;
}

function progress() {
  byId("clear").hidden = counts.all === 0;
  byId("progress").textContent =
    counts.all === 0 ? "No image yet." : `${counts.done} of ${counts.all} images done.`;
}

const tag = (name, text) => Object.assign(document.createElement(name), { textContent: text });
const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
const megabytes = (bytes) => `${number(bytes / 2 ** 20)} MB`;
const megapixels = (pixels) => `${number(pixels / 1e6)} megapixels`;

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

const drop = byId("drop");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // or else the browser opens what is dropped beside the field
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) {
    drop.classList.remove("over");
  }
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
byId("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
byId("category").addEventListener("change", describe);
byId("clear").addEventListener("click", () => {
  waiting.length = 0;
  list.replaceChildren();
  counts.all = counts.done = 0;
  progress();
  byId("files").focus();
});
start();
