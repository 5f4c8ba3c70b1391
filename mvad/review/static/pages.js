export const byId = (id) => document.getElementById(id);

export async function ask(path, parameters = {}, body = null) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== "" && one !== null && one !== undefined) {
        query.append(name, one);
      }
    }
  }
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(`${path}?${query}`, options ?? undefined);
  } catch {
    throw new Error("The server does not respond; is it still running?");
  }
  const content = response.headers.get("Content-Type")?.startsWith("application/json") ? await response.json() : {};
  if (!response.ok) {
    throw new Error(content.error ?? "The server could not answer.");
  }
  return content;
}

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  return made;
}

export function number(value, digits = 2) {
  return value === null || value === undefined ? "-" : value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function percent(value) {
  return value === null || value === undefined ? "-" : `${(100 * value).toFixed(1)} %`;
}

export function fillCategories(select, names) {
  const chosen = select.value || new URLSearchParams(location.search).get("category") || "";
  select.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(name, name)));
  select.value = names.includes(chosen) ? chosen : "";
}

export function keepInAddress(parameters) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value));
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}
