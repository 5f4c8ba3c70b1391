"use strict";
// A name is only ever set as the text of an element or as an attribute of one, never parsed.

const TAIL = 12; // letters of a long name that stay when it is cut
const LONG = 64;
const collator = new Intl.Collator("en", { numeric: true });
const grouped = (count) => count.toLocaleString("en");
const short = (value) => (value === null ? "-" : String(Number(value.toPrecision(4))));
const share = (part, whole) => (whole ? ` (${((100 * part) / whole).toFixed(1)}%)` : "");

function create(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function clamped(name) {
  const letters = Array.from(name);
  if (letters.length <= LONG) {
    return name;
  }
  const parts = [letters.slice(0, -TAIL), letters.slice(-TAIL)];
  const spans = parts.map((part) => create("span", { textContent: part.join("") }));
  return create("span", { className: "clamp", title: name }, ...spans);
}

function embedded(root) {
  return JSON.parse(root.querySelector("script").textContent);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = create("textarea", { value: text });
    button.after(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const label = button.firstChild;
  label.textContent = "Copied";
  setTimeout(() => (label.textContent = "Copy"), 2000);
}

function copyButton(text, what) {
  const button = create("button", { type: "button", title: text }, "Copy", create("span", { className: "hidden" }, what));
  button.addEventListener("click", () => copy(text, button));
  return button;
}

// Pictures: a larger view, and the image's own pixels where the page has them.

const shots = [...document.querySelectorAll(".shot")].filter((shot) => shot.querySelector(".pair img"));
const shotOf = new Map();
const title = create("h2");
const views = create("div", { className: "views" });
const previousShot = create("button", { type: "button" }, "Previous");
const nextShot = create("button", { type: "button" }, "Next");
const closing = create("button", { type: "button" }, "Close");
const controls = create("div", { className: "pager" }, previousShot, nextShot, closing);
const dialog = create("dialog", {}, title, views, controls);
let openShot = 0;

function view(image, caption, style) {
  const larger = create("img", { src: image.src, alt: image.alt });
  return create("figure", { className: style }, larger, create("figcaption", {}, caption));
}

function enlarge(number) {
  openShot = (number + shots.length) % shots.length;
  const shot = shots[openShot];
  title.replaceChildren(clamped(shot.dataset.name), shot.dataset.night ? `, night of ${shot.dataset.night}` : "");
  const images = [...shot.querySelectorAll(".pair img")];
  const figures = images.map((image) => view(image, image.alt.startsWith("Anomaly map of ") ? "Map" : "Image", ""));
  const detail = shot.querySelector(".detail img");
  if (detail) {
    const where = detail.alt.slice(detail.alt.lastIndexOf(": ") + 2);
    figures.push(view(detail, `Its own pixels around the largest region: ${where}`, "own"));
  }
  views.replaceChildren(...figures);
  if (!dialog.open) {
    dialog.showModal();
  }
}

shots.forEach((shot, number) => {
  const pair = shot.querySelector(".pair");
  const category = shot.closest("section").dataset.name;
  shotOf.set(JSON.stringify([shot.dataset.night ?? "", category, shot.dataset.name]), number);
  pair.tabIndex = 0;
  pair.setAttribute("role", "button");
  pair.setAttribute("aria-label", `Enlarge ${[...pair.querySelectorAll("img")].map((image) => image.alt).join("; ")}`);
  pair.addEventListener("click", () => enlarge(number));
  pair.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      enlarge(number);
    }
  });
});
previousShot.addEventListener("click", () => enlarge(openShot - 1));
nextShot.addEventListener("click", () => enlarge(openShot + 1));
closing.addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) {
    enlarge(openShot + step);
  }
});
document.body.append(dialog);

// The list of flagged images.

function listImages(section) {
  const data = embedded(section);
  const hasNights = data.nights.length > 0;
  const hasReviews = data.opinions.length > 0;
  const images = data.rows.map(([name, path, category, uncertain, label, defect, score, excess, p, night, said]) => ({
    name,
    night: hasNights ? data.nights[night] : "",
    review: hasReviews && said !== null ? data.opinions[said] : null,
    path: typeof path === "number" ? `${data.folders[path]}/${name}` : path,
    category: data.categories[category],
    verdict: uncertain,
    label: label === null ? null : defect === null ? ["good", "defective"][label] : data.defects[defect],
    kind: String(label),
    searched: `${hasNights ? data.nights[night] : ""} ${name}`.toLowerCase(),
    number: category,
    score,
    excess,
    p,
  }));
  const filters = section.querySelector(".filters");
  const field = (name) => filters.querySelector(`[name=${name}]`);
  const chosenIn = (name) => field(name)?.value ?? "";
  const body = section.querySelector("tbody");
  const pager = section.querySelector(".pager");
  const [previous, where, next] = pager.children;
  const headers = [...section.querySelectorAll("thead th")];
  let order = { column: "excess", direction: -1 };
  let page = 0;

  function compare(one, other) {
    const [a, b] = [one[order.column], other[order.column]];
    if (a === null || b === null) {
      return (a === null) - (b === null);
    }
    return order.direction * (typeof a === "string" ? collator.compare(a, b) : a - b);
  }

  function cell(heading, ...content) {
    const element = create("td", {}, ...content);
    element.setAttribute("role", "cell");
    element.dataset.title = heading;
    return element;
  }

  function number(heading, value) {
    const element = cell(heading, short(value));
    element.className = "number";
    return element;
  }

  function nameOf(image) {
    const shot = shotOf.get(JSON.stringify([image.night, image.category, image.name]));
    if (shot === undefined) {
      return clamped(image.name);
    }
    const button = create("button", { type: "button", className: "show" }, clamped(image.name));
    button.addEventListener("click", () => enlarge(shot));
    return button;
  }

  function row(image) {
    const name = create("th", { className: "id", scope: "row" }, nameOf(image));
    name.setAttribute("role", "rowheader");
    const verdict = image.verdict
      ? create("span", { className: "badge uncertain" }, "uncertain")
      : create("strong", { className: "badge" }, "flagged");
    const kind = image.kind === "1" ? "defective" : "good";
    const label = image.label === null ? "-" : create("span", { className: `badge ${kind}`, title: image.label }, image.label);
    const cells = [
      ...(hasNights ? [cell("Night", image.night)] : []),
      cell("Category", clamped(image.category)),
      cell("Verdict", verdict),
      cell("Label", label),
      ...(hasReviews ? [cell("Review", image.review === null ? "-" : clamped(image.review))] : []),
      number("Score", image.score),
      number("Thresholds", image.excess),
      number("p-value", image.p),
      cell("", copyButton(image.path, ` the path of ${image.name}`)),
    ];
    delete cells.at(-1).dataset.title;
    const element = create("tr", {}, name, ...cells);
    element.setAttribute("role", "row");
    return element;
  }

  function show() {
    const [name, category, verdict, label] = ["name", "category", "verdict", "label"].map(chosenIn);
    const [night, review] = [chosenIn("night"), chosenIn("review")];
    const searched = name.trim().toLowerCase();
    const chosen = images.filter(
      (image) =>
        image.searched.includes(searched) &&
        (category === "" || String(image.number) === category) &&
        (night === "" || image.night === night) &&
        (review === "" || String(image.review).split(":")[0] === review) &&
        (verdict === "" || String(image.verdict) === verdict) &&
        (label === "" || image.kind === label),
    );
    chosen.sort(compare);
    const pages = Math.max(1, Math.ceil(chosen.length / data.page));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...chosen.slice(page * data.page, (page + 1) * data.page).map(row));
    section.querySelector(".shown").textContent =
      `${grouped(chosen.length)} of ${grouped(images.length)} image${images.length === 1 ? "" : "s"}`;
    where.textContent = `Page ${grouped(page + 1)} of ${grouped(pages)}`;
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
  }

  function turn(step) {
    page += step;
    show();
    section.scrollIntoView();
  }

  for (const header of headers) {
    const button = create("button", { type: "button" }, header.textContent);
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const column = header.dataset.key;
      const falling = header.classList.contains("number") && column !== "p" ? -1 : 1;
      order = { column, direction: order.column === column ? -order.direction : falling };
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order.direction > 0 ? "ascending" : "descending");
      page = 0;
      show();
    });
  }
  const paths = create("th", { scope: "col" }, "Path");
  paths.setAttribute("role", "columnheader");
  section.querySelector("thead tr").append(paths);
  data.categories
    .map((name, value) => create("option", { value, textContent: name, title: name }))
    .sort((one, other) => collator.compare(one.textContent, other.textContent))
    .forEach((option) => field("category").append(option));
  [...data.nights].sort().forEach((night) => field("night").append(create("option", { textContent: night })));
  filters.addEventListener("input", () => {
    page = 0;
    show();
  });
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  filters.hidden = pager.hidden = false;
  show();
}

// What other thresholds would flag.

function whatIf(group) {
  const { stops, command } = embedded(group);
  const slider = group.querySelector("[type=range]");
  const field = group.querySelector("[type=number]");
  const present = group.querySelector(".present");
  const code = group.querySelector(".command");

  function counts(at) {
    const lines = [`${grouped(stops.flagged[at])} of ${grouped(stops.n_images)} images flagged${share(stops.flagged[at], stops.n_images)}`];
    if (stops.n_defective) {
      lines.push(`${grouped(stops.found[at])} of ${grouped(stops.n_defective)} defective images found: recall${share(stops.found[at], stops.n_defective)}`);
    }
    if (stops.n_good) {
      lines.push(`${grouped(stops.false_alarms[at])} of ${grouped(stops.n_good)} good images flagged: false alarms${share(stops.false_alarms[at], stops.n_good)}`);
    }
    return lines;
  }

  function show(threshold) {
    const at = Number(slider.value);
    const now = stops.present === null ? [] : counts(stops.present);
    const lines = counts(at).map((line, number) => {
      const before = at === stops.present || !now.length ? "" : `; at present ${now[number].split(" ")[0]}`;
      return create("p", {}, line + before);
    });
    slider.setAttribute("aria-valuetext", String(threshold));
    group.querySelector(".counts").replaceChildren(...lines);
    if (command) {
      code.textContent = command[0] + threshold + command[1];
    }
  }

  function move(at) {
    slider.value = at;
    field.value = stops.values[at];
    show(stops.values[at]);
  }

  slider.addEventListener("input", () => move(Number(slider.value)));
  field.addEventListener("change", () => {
    const threshold = field.valueAsNumber;
    if (Number.isNaN(threshold)) {
      move(Number(slider.value));
      return;
    }
    const above = stops.starts.findIndex((start) => start > threshold);
    move(Math.max(0, (above < 0 ? stops.starts.length : above) - 1));
  });
  if (present) {
    const place = stops.present / (stops.values.length - 1);
    present.style.left = `calc(0.5rem + ${place} * (100% - 1rem))`;
    group.querySelector(".back").addEventListener("click", () => move(stops.present));
  }
  const button = group.querySelector(".copy");
  button?.addEventListener("click", () => copy(code.textContent, button));
  group.hidden = false;
  move(Number(slider.value));
}

document.querySelectorAll("section.flagged").forEach((section) => section.querySelector("script") && listImages(section));
document.querySelectorAll(".what-if").forEach(whatIf);
