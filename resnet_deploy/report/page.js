"use strict";
const text = id => document.getElementById(id).textContent;
const json = id => JSON.parse(text(id));

/* The record is large, and parsed once something of it is asked for. */
let parsed;
const record = () => parsed ??= json("record");

/* ---- plots ---- */

const figures = json("figures");
const waiting = Object.keys(figures);
const drawn = [];
// Named one by one, for plotly's own choice has a button that uploads the chart.
const config = {responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
// A finger on a plot is to scroll the page, not to zoom.
const coarse = matchMedia("(pointer: coarse)").matches;

function draw(element, figure) {
  figure.layout.dragmode = coarse ? false : "zoom";
  return Plotly.newPlot(element, figure.data, figure.layout, {...config, displayModeBar: coarse ? false : "hover"});
}

function drawNext() {
  const id = waiting.shift();
  draw(document.getElementById(id), figures[id]);
  drawn.push(id);
  for (const button of document.querySelectorAll(".legend button[aria-pressed=false]")) showEngine(id, button);
}

// One after the other, so that the page can be read while the later ones are still being drawn.
function drawAll() {
  if (!waiting.length) return;
  drawNext();
  setTimeout(drawAll);
}

/* ---- the legend switches engines off and on, in all plots at once ---- */

function showEngine(id, button) {
  const plot = document.getElementById(id), number = Number(button.dataset.engine);
  const visible = button.getAttribute("aria-pressed") === "true";
  const traces = plot.data.flatMap((trace, index) => trace.meta?.engine === number ? [index] : []);
  if (traces.length) Plotly.restyle(plot, {visible}, traces);
  (plot.layout.annotations ?? []).forEach((annotation, index) => {
    if (annotation.name === `engine-${number}`) Plotly.relayout(plot, {[`annotations[${index}].visible`]: visible});
  });
}

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    drawn.forEach(id => showEngine(id, button));
  });
}

/* ---- paper: browsers announce printing before they lay the page out, so sizes that fit A4 and Letter are given here ---- */

function onPaper(plot) {
  // Wide plots stand alone, narrow ones in pairs, of which two fit on a page where they are as low as most are.
  const isWide = plot.closest("figure").classList.contains("wide");
  const fits = Math.min(plot.clientHeight, 570);
  return {width: isWide ? 930 : 450, height: !isWide && fits < 420 ? 240 : fits};
}

addEventListener("beforeprint", () => {
  while (waiting.length) drawNext();
  for (const plot of document.querySelectorAll("figure .plot")) Plotly.relayout(plot, {...onPaper(plot), autosize: false});
});
addEventListener("afterprint", () => {
  for (const plot of document.querySelectorAll("figure .plot")) {
    Plotly.relayout(plot, {width: null, height: null, autosize: true});
  }
});

/* ---- raw values behind a figure: #samples/ENGINE/WAY/FIGURE and #answers/ENGINE/FIGURE ---- */

const panel = document.getElementById("panel");
const FIRST_ROWS = 1000, STRIP_POINTS = 4000;
let addresses = [], shownHash = "";

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function table(header, rows, className) {
  const body = make("tbody");
  const line = (cells, index) =>
    make("tr", {className: className(index)}, ...cells.map(cell => make("td", {textContent: cell})));
  const add = (from, to) => body.append(...rows.slice(from, to).map((cells, index) => line(cells, from + index)));
  add(0, FIRST_ROWS);
  const scroll = make("div", {className: "scroll", tabIndex: 0},
    make("table", {}, make("thead", {}, make("tr", {}, ...header.map(name => make("th", {textContent: name})))), body));
  if (rows.length <= FIRST_ROWS) return [scroll];
  const more = make("button", {type: "button", textContent: `Show all ${rows.length.toLocaleString("en")} rows`});
  more.addEventListener("click", () => { add(FIRST_ROWS); more.remove(); });
  return [scroll, make("div", {className: "buttons"}, more)];
}

function download(label, name, content, type) {
  const address = URL.createObjectURL(new Blob([content], {type}));
  addresses.push(address);
  return make("a", {className: "button", href: address, download: name, textContent: label});
}

function downloads(name, header, rows, value) {
  const file = name.replace(/[^\w.-]+/g, "_");
  const csv = [header, ...rows].map(cells => cells.join(",")).join("\n") + "\n";
  return make("div", {className: "buttons"}, download("CSV", `${file}.csv`, csv, "text/csv"),
    download("JSON", `${file}.json`, JSON.stringify(value), "application/json"));
}

function findSamples(name, key) {
  const number = keys.findIndex(([own]) => own === name);
  const place = number < 0 ? -1 : keys[number][1].findIndex(([own]) => own === key);
  return place < 0 ? null : {name, key, way: keys[number][1][place][1], samples: record().engines[number].latency[place]};
}

/* Thin a long series, but keep its slowest calls and the one asked for. */
function stripPoints(seconds, call) {
  const all = seconds.map((_, index) => index);
  if (all.length <= STRIP_POINTS) return all;
  const kept = new Set([...all].sort((a, b) => seconds[b] - seconds[a]).slice(0, STRIP_POINTS / 4));
  const step = Math.ceil(all.length / (STRIP_POINTS - kept.size));
  return all.filter(index => index % step === 0 || kept.has(index) || index === call);
}

function strip(element, {seconds, rounds}, call) {
  const figure = structuredClone(json("strip")), points = stripPoints(seconds, call);
  const ordered = [...new Set(rounds)];
  figure.data = [{
    x: points.map(index => index + 1), y: points.map(index => 1e3 * seconds[index]), mode: "markers", type: "scatter",
    marker: {color: "#2f7fc1", size: 4, opacity: points.map(index => ordered.indexOf(rounds[index]) % 2 ? 0.9 : 0.4)},
    text: points.map(index => `round ${rounds[index]}`), hovertemplate: "call %{x}, %{text}<br>%{y:.6~g} ms<extra></extra>",
  }];
  if (call !== undefined) {
    const marker = {color: "#d55e00", size: 11, symbol: "circle-open", line: {width: 2}};
    figure.data.push({x: [call + 1], y: [1e3 * seconds[call]], mode: "markers", type: "scatter", marker, hoverinfo: "skip"});
  }
  return draw(element, figure);
}

function samplesPart({name, key, way, samples}, call) {
  const {seconds, rounds, wall, batch} = samples;
  const total = seconds.length.toLocaleString("en"), count = new Set(rounds).size;
  const facts = `${name}: ${way}. ${total} calls in ${count} ${count === 1 ? "round" : "rounds"}.` +
    (wall?.length ? ` Wall clock of the rounds: ${wall.map(each => each.toPrecision(4)).join(", ")} s.` : "") +
    (call !== undefined ? ` The figure is call ${call + 1}, in round ${rounds[call]}.` : "");
  const header = ["call", "round", "seconds"], rows = seconds.map((value, index) => [index + 1, rounds[index], value]);
  const plot = make("div", {className: "plot"});
  const shade = "Paler and darker dots: one round and the next.";
  const thinned = seconds.length > STRIP_POINTS ? " Not every call is drawn; the slowest are." : "";
  return {plot: () => strip(plot, samples, call), nodes: [
    make("p", {textContent: facts}), plot, make("p", {className: "note", textContent: shade + thinned}),
    downloads(`${name}-${key}`, header, rows, {engine: name, batch, ...samples}),
    ...table(header, rows, index => index === call ? "call" : "")]};
}

function answersPart(name, reference) {
  const find = wanted => record().engines.find(engine => engine.name === wanted)?.outputs;
  const own = find(name), other = find(reference), labels = record().dataset?.labels ?? [];
  if (!own) return null;
  const columns = [["image", index => index + 1]];
  if (labels.length) columns.push(["label", index => labels[index]]);
  own.top5[0]?.forEach((_, place) => columns.push([`class ${place + 1}`, index => own.top5[index][place] ?? "NaN"]));
  if (other) columns.push(["reference", index => other.top5[index][0] ?? "NaN"]);
  for (const field of ["signal", "noise", "max_difference"]) {
    if (own[field]?.length) columns.push([field.replace("_", " "), index => own[field][index] ?? "NaN"]);
  }
  const header = columns.map(([title]) => title), rows = own.top5.map((_, index) => columns.map(([, of]) => of(index)));
  const wrong = index => labels.length ? own.top5[index][0] !== labels[index] : other && own.top5[index][0] !== other.top5[index][0];
  const note = `${rows.length.toLocaleString("en")} images, in the order of the data set. Marked: the best class is not the ${labels.length ? "label" : "reference's"}.`;
  return {plot: () => {}, nodes: [make("p", {textContent: note}),
    downloads(`${name}-answers`, header, rows, {labels, engine: own, reference: other ?? null}), ...table(header, rows, index => wrong(index) ? "wrong" : "")]};
}

function evidence(parts, link) {
  const [kind, name, key] = parts;
  if (kind === "answers") return [answersPart(name, link?.dataset.against && decodeURIComponent(link.dataset.against))];
  const call = link?.dataset.call === undefined ? undefined : Number(link.dataset.call);
  const found = [findSamples(name, key)];
  if (link?.dataset.against) found.push(findSamples(...link.dataset.against.split("/").map(decodeURIComponent)));
  return found.map(one => one && samplesPart(one, call));
}

function partsOf(hash) {
  try {
    return hash.slice(1).split("/").map(decodeURIComponent);
  } catch {  // not an address of ours
    return [];
  }
}

function showPanel() {
  const hash = location.hash, parts = partsOf(hash);
  if (parts[0] !== "samples" && parts[0] !== "answers") {
    panel.close();
    return;
  }
  forget();
  shownHash = hash;
  const link = [...document.querySelectorAll("td a")].find(one => one.getAttribute("href") === hash);
  const shown = evidence(parts, link).filter(Boolean);
  const figure = link ? `: ${link.dataset.figure} ${link.textContent} ${link.dataset.unit}` : "";
  document.getElementById("panel-title").textContent =
    shown.length ? parts[1] + figure : "There are no such samples in this record";
  document.getElementById("panel-rule").textContent = link ? `${link.title}.` : "";
  document.getElementById("panel-body").replaceChildren(...shown.flatMap(part => part.nodes));
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
  shown.forEach(part => part.plot());
  for (const row of panel.querySelectorAll("tr.call")) row.closest(".scroll").scrollTop = row.offsetTop - 100;
}

function forget() {
  addresses.forEach(URL.revokeObjectURL);
  addresses = [];
  for (const plot of panel.querySelectorAll(".plot")) Plotly.purge(plot);
}

const keys = json("keys");
panel.addEventListener("close", () => {
  if (panel.open) return;  // opened again before this was told
  forget();
  document.getElementById("panel-body").replaceChildren();
  // Another address may be on its way to be shown.
  if (location.hash && location.hash === shownHash) history.replaceState(null, "", location.href.split("#")[0]);
});
panel.addEventListener("click", event => { if (event.target === panel) panel.close(); });
document.getElementById("panel-close").addEventListener("click", () => panel.close());
addEventListener("hashchange", showPanel);

document.getElementById("download").href = URL.createObjectURL(new Blob([text("record")], {type: "application/json"}));
if (location.hash) showPanel();
drawAll();
