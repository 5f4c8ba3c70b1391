import { ask, byId, element, fillCategories, keepInAddress, number, percent } from "./pages.js";

const HEIGHT = 190;
const charts = [];

const share = (night) => (night.n_decided ? night.n_flagged / night.n_decided : null);
const day = (stamp) => new Date(stamp * 1000).toISOString().slice(0, 10);
const seconds = (night) => (night ? Date.parse(`${night}T00:00:00Z`) / 1000 : 0);

function alarms(night) {
  const [low, high] = night.flagged_limits ?? [0, 1];
  const flagged = share(night);
  const texts = [];
  if (night.n_images === 0) {
    texts.push("no image could be scored");
  }
  if (night.drifted) {
    texts.push("drifted");
  }
  if (flagged !== null && flagged > high) {
    texts.push("more flagged than usual");
  }
  if (flagged !== null && flagged < low) {
    texts.push("fewer flagged than usual");
  }
  return texts;
}

const isAlarm = (night) => alarms(night).length > 0;
const remarks = (night) => [...alarms(night), ...(night.model_changed ? ["new model"] : [])].join(", ");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function chart(place, title, nights, lines, format) {
  const ink = colour("--ink");
  const axis = { stroke: ink, grid: { stroke: colour("--rule"), width: 1 }, ticks: { stroke: colour("--rule"), width: 1 } };
  const options = {
    width: Math.max(260, place.clientWidth),
    height: HEIGHT,
    title,
    tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "Etc/UTC"),
    scales: { x: { time: true } },
    axes: [{ ...axis, space: 90, values: (_, stamps) => stamps.map(day) }, { ...axis, size: 72, values: (_, values) => values.map(format) }],
    series: [
      { label: "night", value: (_, stamp) => (stamp === null ? "" : day(stamp)) },
      ...lines.map((line) => ({
        label: line.label,
        stroke: colour(line.colour),
        width: line.dash ? 1 : 2,
        dash: line.dash,
        points: { show: !line.dash, size: 5 },
        value: (_, value) => (value === null ? "-" : format(value)),
      })),
    ],
    hooks: {
      draw: [
        (plot) => {
          plot.ctx.save();
          plot.ctx.strokeStyle = colour("--soft");
          plot.ctx.setLineDash([3, 3]);
          for (const night of nights.filter((one) => one.model_changed)) {
            const x = Math.round(plot.valToPos(seconds(night.night), "x", true));
            plot.ctx.beginPath();
            plot.ctx.moveTo(x, plot.bbox.top);
            plot.ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
            plot.ctx.stroke();
          }
          plot.ctx.restore();
        },
      ],
    },
  };
  const data = [nights.map((night) => seconds(night.night)), ...lines.map((line) => nights.map(line.value))];
  charts.push({ plot: new uPlot(options, data, place), place });
}

function table(category, nights) {
  const made = element("table");
  made.append(element("caption", "The same as numbers, the latest night first"));
  const names = ["Night", "Images", "Flagged", "Share", "Uncertain", "Errors", "Median score", "p-values: 5 %", "median", "Remarks"];
  const head = element("tr");
  names.forEach((name, index) =>
    head.append(element("th", name, { scope: "col", class: index && index < 9 ? "number" : "name" })),
  );
  made.append(element("thead"), element("tbody"));
  made.tHead.append(head);
  for (const night of [...nights].reverse()) {
    const row = element("tr", "", isAlarm(night) ? { class: "alarm" } : {});
    const title = element("th", "", { scope: "row" });
    const query = new URLSearchParams({ category, since: night.night ?? "", until: night.night ?? "" });
    title.append(element("a", night.night ?? "run", { href: `review?${query}` }));
    row.append(title);
    const numbers = [
      number(night.n_images), number(night.n_flagged), percent(share(night)), number(night.n_uncertain),
      number(night.n_errors), number(night.median_score), number(night.p_low, 3), number(night.p_median, 3),
    ];
    row.append(...numbers.map((text) => element("td", text, { class: "number" })), element("td", remarks(night), { class: "name" }));
    made.tBodies[0].append(row);
  }
  const scroll = element("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Nights of ${category} as numbers` });
  scroll.append(made);
  return scroll;
}

function show(series) {
  charts.splice(0).forEach(({ plot }) => plot.destroy());
  byId("series").replaceChildren();
  series.forEach(({ category, nights, median_limits: limits }, index) => {
    const section = element("section", "", { "aria-labelledby": `series-${index}` });
    section.append(element("h2", category, { id: `series-${index}` }));
    const marked = nights.filter(isAlarm);
    const latest = nights.at(-1);
    section.append(element("p",
      `${nights.length} nights, ${marked.length} to look at. The last one: ${number(latest.n_images)} images, ` +
      `${percent(share(latest))} flagged${remarks(latest) ? ` (${remarks(latest)})` : ""}.`, { class: "small" }));
    byId("series").append(section);
    if (nights.some((night) => night.night)) {
      const places = [0, 1, 2].map(() => element("div", "", { class: "chart", "aria-hidden": "true" }));
      section.append(...places);
      const limit = (which) => (night) => night.flagged_limits?.[which] ?? null;
      const dash = [6, 4];
      chart(places[0], "Share of flagged images", nights, [
        { label: "flagged", colour: "--hot", value: share },
        { label: "lower limit", colour: "--soft", dash, value: limit(0) },
        { label: "upper limit", colour: "--soft", dash, value: limit(1) },
      ], percent);
      chart(places[1], "Median score", nights, [
        { label: "median", colour: "--link", value: (night) => night.median_score },
        { label: "threshold", colour: "--hot", dash, value: (night) => night.threshold },
        { label: "lower limit", colour: "--soft", dash, value: () => limits?.[0] ?? null },
        { label: "upper limit", colour: "--soft", dash, value: () => limits?.[1] ?? null },
      ], (value) => number(value));
      chart(places[2], "p-values: 5 %, median, 95 %", nights, [
        { label: "5 %", colour: "--soft", value: (night) => night.p_low },
        { label: "median", colour: "--link", value: (night) => night.p_median },
        { label: "95 %", colour: "--soft", value: (night) => night.p_high },
      ], (value) => number(value, 3));
    }
    section.append(table(category, nights));
  });
}

async function load() {
  const parameters = { since: byId("since").value, until: byId("until").value, category: byId("category").value };
  byId("problem").textContent = "";
  try {
    const content = await ask("api/nights", parameters);
    fillCategories(byId("category"), content.categories);
    show(content.series);
    const { nights } = content;
    byId("state").textContent = nights.length
      ? `${nights.length} nights from ${nights[0]} to ${nights.at(-1)}, ${content.series.length} categories.`
      : `${content.series.length} categories of a run.`;
    keepInAddress(parameters);
  } catch (error) {
    byId("problem").textContent = error.message;
    byId("state").textContent = "";
    show([]);
  }
}

const given = new URLSearchParams(location.search);
for (const name of ["since", "until"]) {
  byId(name).value = given.get(name) ?? "";
}
if (given.get("category")) {
  byId("category").add(new Option(given.get("category"), given.get("category"), true, true));
}
for (const id of ["since", "until", "category"]) {
  byId(id).addEventListener("change", load);
}
addEventListener("resize", () => {
  charts.forEach(({ plot, place }) => plot.setSize({ width: Math.max(260, place.clientWidth), height: HEIGHT }));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", load);
load();
