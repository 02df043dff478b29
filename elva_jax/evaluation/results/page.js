"use strict";
// Every text of the data goes into the page as textContent, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const STEP = 50;
const $ = (id) => document.getElementById(id);
const FILTERS = ["benchmark", "way", "status", "category", "search", "frames"];
let shown = STEP;

function make(parent, tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  parent.append(node);
  return node;
}

for (const item of data.items) {
  const media = item.media.map((m) => data.media[m].name);
  const texts = [item.key, item.text, item.written, item.error, ...item.options, ...item.references];
  item.search = [...texts, ...media].join("\n").toLowerCase();
  item.framed = item.media.some((m) => data.media[m].frames.length);
}

function fill(select, choices, every) {
  const before = select.value;
  select.replaceChildren();
  if (every) make(select, "option", every).value = "";
  for (const [value, text] of choices) make(select, "option", text).value = value;
  if ([...select.options].some((option) => option.value === before)) select.value = before;
}

const unique = (values) => [...new Set(values)].map((value) => [value, value]);

function ofBenchmark() {
  const name = $("benchmark").value;
  return name === "" ? data.items : data.items.filter((item) => item.benchmark === Number(name));
}

function refill() {
  const items = ofBenchmark();
  fill($("way"), unique(items.flatMap((item) => Object.keys(item.grades))));
  fill($("status"), unique(items.flatMap((item) => Object.values(item.grades).map((g) => g.status))), "all");
  fill($("category"), unique(items.flatMap((item) => item.categories)), "all");
}

function matching() {
  const way = $("way").value, status = $("status").value, category = $("category").value;
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  return ofBenchmark().filter((item) =>
    item.grades[way] &&
    (!status || item.grades[way].status === status) &&
    (!category || item.categories.includes(category)) &&
    (!$("frames").checked || item.framed) &&
    words.every((word) => item.search.includes(word)));
}

function letter(number) {
  return number < 26 ? String.fromCharCode(65 + number) : String(number + 1);
}

function pair(list, name, text) {
  make(list, "dt", name);
  make(list, "dd", text);
}

function show(item, way) {
  const grade = item.grades[way];
  const article = make($("questions"), "article", undefined, grade.status);
  const facts = make(article, "p", undefined, "facts");
  make(facts, "span", grade.status.replaceAll("_", " "), "status");
  const names = item.media.map((m) => data.media[m].name);
  make(facts, "span", ["", data.benchmarks[item.benchmark], item.key, ...names, ...item.categories].join(" · "));
  make(article, "h2", item.text);
  for (const m of item.media) {
    const medium = data.media[m];
    if (medium.frames.length) {
      const frames = make(article, "div", undefined, "frames");
      for (const url of medium.frames) {
        const image = make(frames, "img");
        image.src = url;
        image.alt = `frame of ${medium.name}`;
      }
    }
    if (medium.note) make(article, "p", `${medium.name}: ${medium.note}`, "note");
  }
  if (item.options.length) {
    const list = make(article, "ol");
    item.options.forEach((option, number) => {
      const line = make(list, "li", `${letter(number)}. ${option}`);
      line.classList.toggle("reference", number === item.answer);
      line.classList.toggle("answer", number === grade.parsed);
    });
  }
  const list = make(article, "dl");
  if (item.references.length) pair(list, "reference", item.references.join(" / "));
  if (item.error) pair(list, "not read", item.error);
  else if (item.written !== null) pair(list, "written", item.written === "" ? "(empty)" : item.written);
  if (typeof grade.parsed === "string") pair(list, "compared as", grade.parsed);
  for (const [name, value] of Object.entries(grade.details)) pair(list, name, String(value));
  if (item.tokens.length) pair(list, "tokens", item.tokens.join(" → "));
}

function draw() {
  const found = matching();
  const way = $("way").value;
  $("questions").replaceChildren();
  for (const item of found.slice(0, shown)) show(item, way);
  $("count").textContent = `${found.length} of ${data.items.length} questions`;
  $("more").hidden = found.length <= shown;
  const state = new URLSearchParams();
  for (const id of FILTERS) {
    const value = id === "frames" ? ($("frames").checked ? "1" : "") : $(id).value;
    if (value && !(id === "way" && $("way").selectedIndex === 0)) state.set(id, value);
  }
  history.replaceState(null, "", `#${state}`);
}

function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  $("benchmark").value = state.get("benchmark") ?? "";
  refill();
  for (const id of ["way", "status", "category"]) if (state.has(id)) $(id).value = state.get(id);
  for (const id of ["way", "status", "category"]) if ($(id).selectedIndex < 0) $(id).selectedIndex = 0;
  $("search").value = state.get("search") ?? "";
  $("frames").checked = state.has("frames");
}

function change(event) {
  if (event.target.id === "benchmark") refill();
  shown = STEP;
  draw();
}

fill($("benchmark"), data.benchmarks.map((title, number) => [String(number), title]), "all");
restore();
$("filters").addEventListener("input", change);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", () => { shown += STEP; draw(); });
window.addEventListener("hashchange", () => { restore(); shown = STEP; draw(); });
draw();
