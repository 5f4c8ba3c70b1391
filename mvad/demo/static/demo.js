const MAX_REQUESTS = 2; // sent at the same time
const MAX_ATTEMPTS = 5; // while the demo is busy
const byId = (id) => document.getElementById(id);
const list = byId("list");
const waiting = [];
const counts = { all: 0, done: 0 };
let running = 0;
let models = new Map(); // by category
let limits = null;

async function start() {
  byId("endpoint").textContent = new URL("score", location.href).href;
  try {
    const response = await fetch("categories");
    const content = await response.json();
    models = new Map(content.categories.map((model) => [model.category, model]));
    limits = content.limits;
    byId("pages").hidden = !content.has_nights;
  } catch {
    byId("problem").textContent = "The server does not respond; reload this page when it is running.";
    return;
  }
  const select = byId("category");
  for (const name of models.keys()) {
    select.add(new Option(name, name));
  }
  if (models.size === 1) {
    select.value = [...models.keys()][0];
  }
  byId("limits").textContent =
    `PNG, JPEG, BMP, TIFF, WebP, JPEG 2000 or PNM, up to ${megabytes(limits.upload_bytes)} and ${megapixels(limits.pixels)} each.`;
  describe();
}

function describe() {
  const model = models.get(byId("category").value);
  byId("about").textContent = model
    ? `${model.method} on ${model.backbone} at ${model.input_width} x ${model.input_height} pixels, fitted to ${model.n_train ?? "some"} good ` +
      `images. ${model.promise ? sentence(model.promise) : "It is not calibrated, so there is no threshold."}`
    : `Each image is compared with all ${models.size} categories and scored as the closest one.`;
}

function add(files) {
  const category = byId("category").value;
  const items = [...files].map((file) => ({ file, category, element: placeholder(file.name) }));
  list.prepend(...items.map((item) => item.element));
  waiting.push(...items);
  counts.all += items.length;
  progress();
  for (let free = MAX_REQUESTS - running; free > 0; free--) {
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
    show(item.element, { status: "error", error: "The server does not respond; is it still running?" });
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
  let response = await fetch("score", { method: "POST", body: form });
  for (let attempt = 1; attempt < MAX_ATTEMPTS && response.headers.has("Retry-After"); attempt++) {
    const seconds = Number(response.headers.get("Retry-After"));
    await new Promise((resume) => setTimeout(resume, 1000 * seconds));
    response = await fetch("score", { method: "POST", body: form });
  }
  const content = await response.json();
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
  const [word, style, reason] = verdict(result);
  find(".badge").textContent = word;
  find(".badge").classList.add(style);
  find(".why").textContent = reason;
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
    return ["Not scored", "failed", sentence(result.error ?? "the server gave no reason")];
  }
  if (result.is_anomaly === null) {
    return ["No verdict", "open", "The model is not calibrated, so there is no threshold."];
  }
  if (result.verdict === "uncertain") {
    return ["Uncertain", "open", "Its score is not above the threshold, but few good images score as high: look at it."];
  }
  return result.is_anomaly
    ? ["Anomalous", "bad", "Its score is above the threshold."]
    : ["Looks good", "fine", "Its score is not above the threshold."];
}

function facts(result) {
  if (result.status !== "ok") {
    return [];
  }
  const rows = [["Category", result.category + (result.guessed ? detected(result) : "")]];
  rows.push(["Score", number(result.score)]);
  if (result.threshold !== null) {
    rows.push(["Threshold", number(result.threshold)]);
  }
  if (result.p_value !== null) {
    rows.push(["p-value", pValue(result)]);
  }
  rows.push(["Image", `${result.width} x ${result.height} pixels`]);
  if (result.regions) {
    rows.push(["Regions", regions(result.regions)]);
  }
  return rows;
}

function regions(found) {
  if (!found.length) {
    return "none above the pixel threshold";
  }
  const [first] = found;
  const place = `${first.width} x ${first.height} pixels at x ${first.x}, y ${first.y}`;
  return found.length > 1 ? `${found.length}; the strongest ${place}` : place;
}

function detected(result) {
  const next = result.candidates?.[1];
  return next ? `, detected (next closest: ${next.category})` : ", detected";
}

function pValue(result) {
  const n = models.get(result.category)?.n_calibration;
  if (!n) {
    return number(result.p_value);
  }
  const higher = Math.round(result.p_value * (n + 1)) - 1;
  return `${number(result.p_value)}: ${higher || "none"} of ${n} good images scored as high`;
}

function progress() {
  byId("clear").hidden = counts.all === 0;
  byId("progress").textContent =
    counts.all === 0 ? "No images yet." : `${counts.done} of ${counts.all} images done.`;
}

const tag = (name, text) => Object.assign(document.createElement(name), { textContent: text });
const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
const megabytes = (bytes) => `${number(bytes / 2 ** 20)} MB`;
const megapixels = (pixels) => `${number(pixels / 1e6)} megapixels`;

function sentence(text) {
  const capitalised = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capitalised) ? capitalised : `${capitalised}.`;
}

const drop = byId("drop");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // otherwise the browser opens files dropped outside the field
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
