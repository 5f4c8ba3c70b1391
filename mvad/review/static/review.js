import { ask, byId, element, fillCategories, keepInAddress, number, percent } from "./pages.js";

const PAGE = 50;
const AROUND = 512; // pixels that the view of own pixels shows at least
let images = [];
let position = 0;
let total = 0;
let generation = 0; // of the question, so that a late answer to an earlier one is dropped
const EVALUATED_AGAIN_MS = 10000;
let evaluating = null; // until the labels are evaluated again
const done = []; // images that were labelled here, the last one at the end
const kinds = new Set();

const filters = () => ({
  since: byId("since").value, until: byId("until").value, category: byId("category").value, search: byId("search").value,
});
const asked = () => {
  const [drawn, among] = byId("order").value.split(" ");
  return { ...filters(), drawn, among };
};

function problem(error) {
  byId("problem").textContent = error ? error.message : "";
}

async function load() {
  const mine = ++generation;
  problem(null);
  keepInAddress({ ...filters(), order: byId("order").value });
  try {
    const content = await ask("api/queue", { ...asked(), limit: PAGE });
    if (mine !== generation) {
      return;
    }
    images = content.images;
    total = content.n_images;
    position = 0;
    done.splice(0);
    problem(content.problems.length ? new Error(content.problems.join("; ")) : null);
  } catch (error) {
    images = [];
    total = 0;
    problem(error);
  }
  show();
  evaluate();
}

async function more() {
  const mine = generation;
  const known = new Set(images.map((image) => `${image.folder}\n${image.image_id}`));
  const skipped = images.filter((image) => !image.label).length;
  const content = await ask("api/queue", { ...asked(), limit: PAGE, offset: skipped });
  if (mine === generation) {
    images.push(...content.images.filter((image) => !known.has(`${image.folder}\n${image.image_id}`)));
  }
}

const place = (image) => new URLSearchParams({ folder: image.folder, image_id: image.image_id });

function ownPixels(image) {
  const [first] = image.regions ?? [];
  const box = first ?? { x: (image.width - AROUND) / 2, y: (image.height - AROUND) / 2, width: AROUND, height: AROUND };
  const side = Math.max(AROUND, box.width, box.height);
  const query = place(image);
  query.set("left", Math.max(0, Math.round(box.x + box.width / 2 - side / 2)));
  query.set("top", Math.max(0, Math.round(box.y + box.height / 2 - side / 2)));
  query.set("width", side);
  query.set("height", side);
  return query;
}

function draw(image) {
  const isZoomed = byId("zoom").getAttribute("aria-pressed") === "true";
  const isBare = byId("hide").getAttribute("aria-pressed") === "true";
  const picture = byId("picture");
  const map = byId("map");
  byId("viewer").classList.toggle("own-pixels", isZoomed);
  picture.alt = `the image ${image.image_id}`;
  picture.src = `api/picture?${isZoomed ? ownPixels(image) : place(image)}`;
  map.hidden = true;
  map.removeAttribute("src");
  if (!isZoomed && !isBare) {
    map.src = `api/map?${place(image)}`;
  }
  showNearest(image);
}

// The good image that the model finds most alike, where this one is worst.

const found = new Map(); // what the server said of an image, or will say
let isNearestShown = false;

function mark(box, on) {
  box.hidden = !on;
  if (!box.hidden) {
    box.style.left = `${(100 * on.x) / on.of.width}%`;
    box.style.top = `${(100 * on.y) / on.of.height}%`;
    box.style.width = `${(100 * on.width) / on.of.width}%`;
    box.style.height = `${(100 * on.height) / on.of.height}%`;
  }
}

function sentence(answer) {
  const other = answer.same_model === false ? " Another model scored this image; it is compared by the one in use now." : "";
  if (answer.why) {
    return `The nearest good image is not known: ${answer.why}.${other}`;
  }
  const where = answer.place && !answer.good_place ? " Where in it is not known: it is alike in a variant of the image." : "";
  return `The good image that is most alike${answer.place ? ", at the worst place" : ""}: ${answer.image_id}.${where}${other}`;
}

async function showNearest(image) {
  const [good, picture, caption] = ["good", "good-picture", "good-caption"].map(byId);
  const isZoomed = byId("zoom").getAttribute("aria-pressed") === "true";
  byId("place").hidden = byId("good-place").hidden = true;
  good.hidden = !isNearestShown;
  byId("good-viewer").hidden = true;
  picture.removeAttribute("src");
  if (!isNearestShown) {
    return;
  }
  caption.textContent = "Looking for the nearest good image.";
  const key = place(image).toString();
  if (!found.has(key)) {
    found.set(key, ask(`api/nearest`, { folder: image.folder, image_id: image.image_id }).catch((error) => {
      found.delete(key); // it may be known the next time
      return { image_id: null, why: error.message.replace(/\.$/, ""), failed: true };
    }));
  }
  const answer = await found.get(key);
  if (image !== images[position] || !isNearestShown) {
    return;
  }
  caption.textContent = sentence(answer);
  if (answer.image_id === null) {
    return;
  }
  picture.alt = `the good image ${answer.image_id}`;
  picture.dataset.place = JSON.stringify(answer.good_place && { ...answer.good_place, of: answer.good_size });
  picture.src = `api/nearest/picture?${new URLSearchParams({ category: answer.category, image_id: answer.image_id })}`;
  byId("good-viewer").hidden = false;
  mark(byId("place"), !isZoomed && answer.place && { ...answer.place, of: image });
}

function show() {
  const image = images[position];
  byId("current").hidden = !image;
  const labelled = images.filter((one) => one.label).length;
  byId("state").textContent = total
    ? `${total.toLocaleString("en")} images await a label with these filters; ${labelled} labelled now.`
    : "No image awaits a label with these filters.";
  if (!image) {
    return;
  }
  byId("image-title").textContent = image.image_id;
  const facts = [
    ["Category", image.category],
    ["Night", image.night ?? "-"],
    ["Verdict", image.verdict ?? "-"],
    ["Score", `${number(image.score)} (threshold ${number(image.threshold)})`],
    ["p-value", number(image.p_value, 4)],
    ["Regions", image.regions ? `${image.regions.length}, ${percent(image.anomalous_area)} of the image` : "-"],
    ["Label", image.label?.judgement ? [image.label.judgement, image.label.defect].filter(Boolean).join(": ") : "none yet"],
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  for (const button of document.querySelectorAll("[data-judgement]")) {
    button.setAttribute("aria-pressed", String(image.label?.judgement === button.dataset.judgement));
  }
  byId("undo").disabled = !done.length;
  draw(image);
}

async function move(step) {
  const target = position + step;
  if (target < 0) {
    return;
  }
  if (target >= images.length && images.length < total) {
    await more().catch(problem);
  }
  if (target < images.length) {
    position = target;
  }
  show();
}

function reviewer() {
  const name = byId("reviewer").value.trim();
  if (!name) {
    byId("reviewer").focus();
    throw new Error("Say who you are first: labels carry their reviewer's name.");
  }
  localStorage.setItem("reviewer", name);
  return name;
}

let sending = Promise.resolve(); // labels are sent one after the other, in the order in which they were given

function say(image, label) {
  const { drawn } = asked();
  const before = image.label;
  const said = {
    folder: image.folder, image_id: image.image_id, drawn, judgement: label?.judgement ?? null, defect: label?.defect || null,
  };
  const body = { reviewer: reviewer(), labels: [said] };
  problem(null);
  image.label = label;
  sending = sending.then(() => ask("api/labels", {}, body)).then(evaluateSoon, (error) => {
    image.label = before; // back to the image: its label is not kept
    position = Math.max(0, images.indexOf(image));
    show();
    problem(error);
  });
}

async function judge(judgement) {
  const image = images[position];
  if (!image) {
    return;
  }
  const defect = judgement === "defect" ? byId("defect").value.trim() : "";
  try {
    say(image, { judgement, defect });
  } catch (error) {
    problem(error);
    return;
  }
  if (defect && !kinds.has(defect)) {
    kinds.add(defect);
    byId("kinds").append(new Option(defect));
  }
  done.push(image);
  await move(1);
}

function undo() {
  const image = done.pop();
  if (image) {
    say(image, null);
    position = images.indexOf(image);
    show();
  }
}

function toggle(button) {
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  if (images[position]) {
    draw(images[position]);
  }
}

function toggleNearest() {
  isNearestShown = !isNearestShown;
  byId("nearest").setAttribute("aria-pressed", String(isNearestShown));
  if (images[position]) {
    showNearest(images[position]);
  }
}

const interval = (row, name) =>
  row[name] === null ? "-" : `${percent(row[name])} (${percent(row[`${name}_low`])} to ${percent(row[`${name}_high`])})`;

async function evaluate() {
  const mine = generation;
  try {
    const { since, until } = filters();
    const content = await ask("api/evaluation", { since, until });
    if (mine !== generation) {
      return;
    }
    const rows = content.rows.filter((row) => row.n_labelled || row.week === null).map((row) => {
      const made = element("tr");
      made.append(element("th", row.category, { scope: "row", class: "name" }), element("td", row.week ?? "all"));
      const texts = [number(row.n_images), number(row.n_flagged), number(row.n_labelled), interval(row, "precision"), interval(row, "recall")];
      made.append(...texts.map((text) => element("td", text, { class: "number" })));
      return made;
    });
    byId("evaluation").tBodies[0].replaceChildren(...rows);
  } catch (error) {
    problem(error);
  }
}

function evaluateSoon() {
  evaluating ??= setTimeout(() => {
    evaluating = null;
    evaluate();
  }, EVALUATED_AGAIN_MS);
}

const ACTIONS = {
  g: () => judge("good"), d: () => judge("defect"), u: () => judge("unsure"), z: undo,
  ArrowLeft: () => move(-1), ArrowRight: () => move(1), o: () => toggle(byId("zoom")), m: () => toggle(byId("hide")),
  n: toggleNearest,
};

addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select, textarea");
  const action = ACTIONS[event.key];
  if (action && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    action();
  }
});
for (const button of document.querySelectorAll("[data-judgement]")) {
  button.addEventListener("click", () => judge(button.dataset.judgement));
}
byId("undo").addEventListener("click", undo);
byId("previous").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("zoom").addEventListener("click", () => toggle(byId("zoom")));
byId("hide").addEventListener("click", () => toggle(byId("hide")));
byId("nearest").addEventListener("click", toggleNearest);
byId("good-picture").addEventListener("load", () => {
  mark(byId("good-place"), JSON.parse(byId("good-picture").dataset.place));
});
byId("good-picture").addEventListener("error", () => {
  byId("good-viewer").hidden = true;
  byId("good-caption").textContent += " It cannot be shown: it has gone, or it cannot be read.";
});
byId("map").addEventListener("load", () => {
  byId("map").hidden = false;
});
byId("picture").addEventListener("error", () => problem(new Error("This image cannot be shown: it has gone, or it cannot be read.")));
for (const id of ["order", "since", "until", "category", "search"]) {
  byId(id).addEventListener("change", load);
}
byId("reviewer").value = localStorage.getItem("reviewer") ?? "";

const given = new URLSearchParams(location.search);
for (const name of ["since", "until", "search", "order"]) {
  if (given.get(name)) {
    byId(name).value = given.get(name);
  }
}
if (given.get("category")) {
  byId("category").add(new Option(given.get("category"), given.get("category"), true, true));
}
ask("api/categories").then((content) => fillCategories(byId("category"), content.categories)).catch(problem);
load();
