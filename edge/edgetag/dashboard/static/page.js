"use strict";
// Whatever sensors say is shown as text: it only ever becomes `textContent` or an attribute that is no code.

const N_MINUTES = 60;
const N_SOUNDS = 100;
const SILENT_S = 8; // the dashboard says something every second
const STATES = ["offline", "no_audio", "overdue", "degraded", "unknown", "online"]; // trouble first
const SHAPES = {
  online: "M6 1a5 5 0 1 0 .01 0z",
  degraded: "M6 1 11.5 11H.5z",
  no_audio: "M6 .5 11.5 6 6 11.5.5 6z",
  offline: "M1 3 3 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
  overdue: "M6 .5a5.5 5.5 0 1 0 .01 0zM6 2.5a3.5 3.5 0 1 1-.01 0z",
  unknown: "M1 4.5h10v3H1z",
};
const NARROW = "\u00a0";
const collator = new Intl.Collator("en", { numeric: true });

const $ = (id) => document.getElementById(id);
const model = { sensors: new Map(), sounds: new Map(), notes: null, skewS: 0 };
const view = { state: "all", find: "", order: "trouble", route: null };
const link = { source: null, heardAt: 0, isLost: false, why: "" };

// -- elements ---------------------------------------------------------------------------------------------

function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function shape(state) {
  const known = state in SHAPES ? state : "unknown";
  return svg("svg", { viewBox: "0 0 12 12", class: `shape ${known}`, "aria-hidden": "true" },
    svg("path", { d: SHAPES[known], fill: "currentColor", "fill-rule": "evenodd", stroke: "var(--text)", "stroke-width": ".6" }));
}

// Children as the texts say, made anew only where they differ.
function list(parent, texts, make) {
  const key = JSON.stringify(texts);
  if (parent.key !== key) {
    parent.key = key;
    parent.replaceChildren(...texts.map(make));
  }
}

// -- words ------------------------------------------------------------------------------------------------

const words = (name) => name.replaceAll("_", " ");
const nowS = () => Date.now() / 1000 + model.skewS;
const two = (n) => String(n).padStart(2, "0");

function clock(s, withSeconds = true) {
  const at = new Date(s * 1000);
  return `${two(at.getHours())}:${two(at.getMinutes())}${withSeconds ? `:${two(at.getSeconds())}` : ""}`;
}

function span(s) {
  for (const [unit, size, limit] of [["s", 1, 60], ["min", 60, 3600], ["h", 3600, 172800]]) {
    if (s < limit) return `${Math.floor(s / size)} ${unit}`;
  }
  return `${Math.floor(s / 86400)} d`;
}

const percents = (n) => `${n}${NARROW}%`;
const figure = (n, digits = 1) => n.toFixed(digits).replace("-", "−");
const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
const unit = (row) => (row.is_calibrated ? "dB(A)" : "dBFS(A)");
const condition = (row) => (row.is_overdue ? "overdue" : row.state in SHAPES ? row.state : "unknown");
const path = (id) => `#/sensor/${encodeURIComponent(id)}`;

function stateWords(row) {
  return row.is_overdue ? `${words(row.state)}, but overdue` : words(row.state);
}

function lasted(sound) {
  if (sound.is_over) return span(sound.duration_s) + (sound.reason && sound.reason !== "faded" ? ` (${words(sound.reason)})` : "");
  const sensor = model.sensors.get(sound.sensor);
  const isHearing = sensor && ["online", "degraded"].includes(condition(sensor.row));
  return isHearing ? "going on" : "end unknown";
}

// -- what comes in ----------------------------------------------------------------------------------------

function takeRow(fresh) {
  const { minutes, ...row } = fresh;
  const defaults = { is_overdue: false, remarks: [], heard_at_s: null, lag_s: null, level_db: null, is_calibrated: false, tags: [], verdict: "" };
  const known = model.sensors.get(row.id) ?? { minutes: new Map() };
  known.row = { ...defaults, ...row };
  minutes.level_db.forEach((level, index) => known.minutes.set(minutes.last - minutes.level_db.length + 1 + index, level));
  model.sensors.set(row.id, known);
  forgetMinutes(known.minutes);
}

function forgetMinutes(minutes) {
  const oldest = Math.floor(nowS() / 60) - N_MINUTES;
  for (const minute of minutes.keys()) if (minute <= oldest) minutes.delete(minute);
}

function takeSounds(sounds) {
  for (const sound of sounds) model.sounds.set(sound.number, { is_over: false, reason: "", ...sound });
  const numbers = [...model.sounds.keys()].sort((a, b) => a - b);
  for (const number of numbers.slice(0, -N_SOUNDS)) model.sounds.delete(number);
}

function takeNotes(notes) {
  model.skewS = notes.now_s - Date.now() / 1000;
  model.notes = { trouble: "", n_unreadable: 0, fault: "", n_beyond: 0, n_missed: 0, ...notes };
}

function takeSnapshot({ notes, sensors, sounds }) {
  takeNotes(notes);
  model.sensors.clear();
  model.sounds.clear();
  sensors.forEach(takeRow);
  takeSounds(sounds);
  render.all = true;
}

function takeChanges({ notes, sensors = [], gone = [], sounds = [] }) {
  takeNotes(notes);
  announce(sensors);
  for (const id of gone) forget(id);
  for (const row of sensors) takeRow(row), render.sensors.add(row.id);
  takeSounds(sounds);
  if (gone.length) render.all = true;
  if (sounds.length) render.sounds = true;
}

function forget(id) {
  model.sensors.delete(id);
  for (const [number, sound] of model.sounds) if (sound.sensor === id) model.sounds.delete(number);
}

function announce(rows) {
  const changed = rows.filter((row) => model.sensors.has(row.id) && condition(model.sensors.get(row.id).row) !== condition(row));
  if (!changed.length) return;
  const each = changed.map((row) => `${row.id} is ${stateWords(row)}${row.remarks?.length ? `: ${row.remarks[0]}` : ""}`);
  say($("news"), changed.length > 3 ? `${changed.length} sensors have changed their state.` : `${each.join(". ")}.`);
}

// -- the connection to the dashboard ----------------------------------------------------------------------

function connect() {
  link.source = new EventSource("/api/events");
  const hear = (take) => (event) => {
    link.heardAt = performance.now();
    link.isLost = false;
    take(JSON.parse(event.data));
    ask();
  };
  link.source.addEventListener("snapshot", hear(takeSnapshot));
  link.source.addEventListener("changes", hear(takeChanges));
  link.source.addEventListener("error", () => {
    link.isLost = true;
    ask();
    if (link.source.readyState === EventSource.CLOSED) findOutWhy();
  });
}

// A browser does not try again by itself where the answer was no stream.
async function findOutWhy() {
  link.source.close();
  try {
    const answer = await fetch("/api/snapshot");
    if (answer.status === 401) return location.replace("/login");
    link.why = answer.ok ? "too many are looking already" : `it answered ${answer.status}`;
  } catch {
    link.why = "";
  }
  setTimeout(connect, 3000);
}

function watchLink() {
  if (performance.now() - link.heardAt > SILENT_S * 1000) link.isLost = true;
  if (link.isLost && document.visibilityState === "visible" && link.source.readyState === EventSource.OPEN && performance.now() - link.heardAt > 2 * SILENT_S * 1000) {
    link.source.close(); // a machine that slept does not notice that its connection is gone
    link.heardAt = performance.now();
    connect();
  }
}

// -- rendering, at most once a frame ----------------------------------------------------------------------

const render = { all: true, sensors: new Set(), sounds: false, isAsked: false };

function ask() {
  if (render.isAsked) return;
  render.isAsked = true;
  requestAnimationFrame(() => {
    render.isAsked = false;
    draw();
  });
}

function draw() {
  drawLink();
  const { all, sensors } = render;
  const ids = all ? [...model.sensors.keys()] : [...sensors].filter((id) => model.sensors.has(id));
  ids.forEach(drawRow);
  if (all) dropRows();
  if (all || sensors.size) arrange(), drawStates();
  if (all || render.sounds) drawSounds();
  if (view.route !== null && (all || sensors.has(view.route))) detail.ask();
  drawCounts();
  render.all = render.sounds = false;
  render.sensors = new Set();
}

function drawLink() {
  const { notes } = model;
  const isTold = notes !== null && !link.isLost;
  const state = !isTold ? "offline" : notes.trouble ? "degraded" : "online";
  const text = !isTold ? "no connection to the dashboard" : notes.trouble ? `no connection to the broker ${notes.broker}` : `live from ${notes.broker}, ${notes.prefix}/+`;
  if ($("link").key !== state + text) {
    $("link").key = state + text;
    $("link").replaceChildren(shape(state), text);
  }
  const since = notes && link.heardAt ? ` What is shown is from ${clock(nowS() - (performance.now() - link.heardAt) / 1000)}.` : "";
  let alarm = "";
  if (link.isLost) alarm = `This page has lost its connection to the dashboard${link.why ? ` (${link.why})` : ""}, and tries again by itself.${link.alarmSince ?? (link.alarmSince = since)}`;
  else link.alarmSince = undefined, link.why = "";
  if (isTold && notes.trouble === "connecting") alarm = `The dashboard is connecting to the broker ${notes.broker}.`;
  else if (isTold && notes.trouble) alarm = `The dashboard has had no connection to the broker since ${clock(notes.trouble_since_s)}, and tries again by itself: ${notes.trouble}. What is shown was heard before.`;
  say($("alarm"), alarm);
  $("alarm").hidden = !alarm;
}

function drawCounts() {
  const { notes } = model;
  if (notes === null) return;
  const said = [];
  if (notes.n_unreadable) said.push(`${count(notes.n_unreadable, "message")} not understood; the last: ${notes.fault}`);
  if (notes.n_beyond) said.push(`${count(notes.n_beyond, "message")} of more sensors than there is room for`);
  if (notes.n_missed) said.push(`${count(notes.n_missed, "message")} missed: they came faster than they could be taken`);
  say($("counts"), said.join(" · "));
}

// -- the overview -----------------------------------------------------------------------------------------

const rows = new Map();

function makeRow(id) {
  const made = {
    state: el("span", { class: "word" }), level: el("b"), unit: el("small"), ago: el("span", { class: "ago" }),
    curve: svg("path"), tags: el("ul", { class: "chips", "aria-label": "heard in the last window" }), remarks: el("ul", { class: "remarks" }),
  };
  const name = el("a", { href: path(id) }, id);
  made.spark = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img" }, made.curve);
  made.item = el("li", {}, el("div", { class: "who" }, name, el("div", { class: "state" }, made.state, made.ago)),
    el("div", { class: "loud" }, made.level, made.unit), made.spark, el("div", { class: "heard" }, made.tags, made.remarks));
  return made;
}

function drawRow(id) {
  if (!rows.has(id)) rows.set(id, makeRow(id));
  const made = rows.get(id);
  const { row, minutes } = model.sensors.get(id);
  const state = condition(row);
  if (made.state.key !== state + row.state) {
    made.state.key = state + row.state;
    made.state.replaceChildren(shape(state), stateWords(row));
  }
  set(made.item, "class", ["offline", "no_audio"].includes(state) ? "trouble gone" : state === "online" ? "" : "trouble");
  say(made.level, row.level_db === null ? "–" : figure(row.level_db));
  say(made.unit, row.level_db === null ? "" : unit(row));
  drawTags(made.tags, row);
  list(made.remarks, row.remarks, (remark) => el("li", {}, remark));
  drawSpark(made, minutes);
  drawAgo(made, row);
}

function drawTags(parent, row) {
  const said = row.tags.length ? row.tags : row.verdict ? [row.verdict] : [];
  list(parent, said, (tag) => typeof tag === "string" ? el("li", { class: "none" }, tag) : el("li", {}, ...withPercent(tag), ...kinds(tag)));
}

function withPercent({ name, percent }) {
  return percent === undefined ? [name] : [name, NARROW, el("b", {}, percents(percent))];
}

function kinds(tag) {
  return (tag.kinds ?? []).map((kind) => el("small", {}, ...withPercent(kind)));
}

function drawAgo(made, row) {
  say(made.ago, row.heard_at_s === null ? "" : `${span(Math.max(nowS() - row.heard_at_s, 0))}${NARROW}ago`);
}

function drawSpark(made, minutes) {
  const last = Math.floor(nowS() / 60);
  const levels = Array.from({ length: N_MINUTES }, (_, index) => minutes.get(last - N_MINUTES + 1 + index) ?? null);
  const heard = levels.filter((level) => level !== null);
  set(made.curve, "d", curve(levels, 100, 30, ...range(heard, 20)));
  set(made.spark, "aria-label", heard.length ? `level in the last hour: ${figure(Math.min(...heard), 0)} to ${figure(Math.max(...heard), 0)} dB` : "no level in the last hour");
}

// Bounds around all values, at least so far apart.
function range(values, least) {
  if (!values.length) return [0, 1];
  const low = Math.min(...values), high = Math.max(...values), more = Math.max(0, (least - (high - low)) / 2);
  return [low - more, high + more];
}

function runs(levels) {
  const found = [];
  levels.forEach((level, index) => {
    if (level === null) return;
    if (index && levels[index - 1] !== null) found.at(-1).push([index, level]);
    else found.push([[index, level]]);
  });
  return found;
}

function curve(levels, width, height, low, high) {
  const x = (index) => ((index / (levels.length - 1)) * width).toFixed(1);
  const y = (level) => (height - 1 - ((level - low) / (high - low)) * (height - 2)).toFixed(1);
  return runs(levels).map((run) => `M${run.map(([index, level]) => `${x(index)} ${y(level)}`).join("L")}${run.length === 1 ? "h.01" : ""}`).join("");
}

function dropRows() {
  for (const [id, { item }] of rows) if (!model.sensors.has(id)) item.remove(), rows.delete(id);
}

function matches({ row }) {
  const state = condition(row);
  if (view.state !== "all" && !(view.state === "trouble" ? state !== "online" : state === view.state)) return false;
  const sought = [row.id, stateWords(row), ...row.remarks, ...row.tags.flatMap(({ name, kinds = [] }) => [name, ...kinds.map((kind) => kind.name)])].join("\n").toLowerCase();
  return sought.includes(view.find);
}

const ORDERS = {
  id: (a, b) => collator.compare(a.row.id, b.row.id),
  trouble: (a, b) => STATES.indexOf(condition(a.row)) - STATES.indexOf(condition(b.row)) || ORDERS.id(a, b),
  level: (a, b) => (b.row.level_db ?? -Infinity) - (a.row.level_db ?? -Infinity) || ORDERS.id(a, b),
};

function arrange() {
  const shown = [...model.sensors.values()].filter(matches).sort(ORDERS[view.order]);
  place($("sensors"), shown.map(({ row }) => rows.get(row.id).item));
  say($("sensors-title"), shown.length === model.sensors.size ? "Sensors" : `Sensors: ${shown.length} of ${model.sensors.size}`);
  const none = model.sensors.size ? "No sensor is like that." : model.notes ? `Nothing has come under ${model.notes.prefix}/ yet.` : "";
  say($("nothing"), none);
  $("nothing").hidden = shown.length > 0;
}

// Moves what is not where it should be, and leaves the focus where it is.
function place(parent, items) {
  const focused = document.activeElement;
  const kept = new Set(items);
  for (const item of [...parent.children]) if (!kept.has(item)) item.remove();
  let next = parent.firstElementChild;
  for (const item of items) {
    if (item === next) next = next.nextElementSibling;
    else parent.insertBefore(item, next);
  }
  if (parent.contains(focused) && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

function drawStates() {
  const n = { all: model.sensors.size, trouble: 0 };
  for (const { row } of model.sensors.values()) {
    const state = condition(row);
    n[state] = (n[state] ?? 0) + 1;
    if (state !== "online") n.trouble += 1;
  }
  for (const button of $("states").children) {
    const { state } = button.dataset;
    say(button.lastElementChild, `${state === "all" ? "all" : words(state)} ${(n[state] ?? 0).toLocaleString("en")}`);
    button.hidden = !(n[state] || state === "all" || state === view.state);
    set(button, "aria-pressed", String(state === view.state));
  }
  document.title = n.trouble ? `(${n.trouble}) edgetag – sensors` : "edgetag – sensors";
}

function makeStates() {
  for (const state of ["all", "trouble", "online", ...STATES.slice(0, -1).reverse()]) {
    const button = el("button", { type: "button", "data-state": state, "aria-pressed": "false" }, ...(state in SHAPES ? [shape(state)] : []), el("span"));
    button.addEventListener("click", () => {
      view.state = view.state === state ? "all" : state;
      arrange();
      drawStates();
    });
    $("states").append(button);
  }
}

// -- sounds -----------------------------------------------------------------------------------------------

const soundRows = new Map();

function makeSound(sound) {
  const made = { sound: el("td"), lasted: el("td") };
  made.line = el("tr", { class: "fresh" }, el("td", {}, el("time", { datetime: new Date(sound.start_s * 1000).toISOString() }, clock(sound.start_s))),
    made.sound, el("td", { class: sound.sensor.length < 16 ? "short" : "" }, el("a", { href: path(sound.sensor) }, sound.sensor)), made.lasted);
  return made;
}

function soundWords(sound) {
  return `${sound.name} ${percents(sound.percent)}`;
}

function drawSounds() {
  for (const [number, { line }] of soundRows) if (!model.sounds.has(number)) line.remove(), soundRows.delete(number);
  const shown = [...model.sounds.values()].sort((a, b) => b.number - a.number);
  for (const sound of shown) {
    if (!soundRows.has(sound.number)) soundRows.set(sound.number, makeSound(sound));
    drawSound(soundRows.get(sound.number), sound);
  }
  place($("sounds").tBodies[0], shown.map(({ number }) => soundRows.get(number).line));
  $("sounds").hidden = !shown.length;
  $("silence").hidden = shown.length > 0;
}

function drawSound(made, sound) {
  say(made.sound, soundWords(sound));
  const words = lasted(sound);
  say(made.lasted, words);
  set(made.lasted, "class", words === "going on" ? "on" : "");
}

// -- one sensor -------------------------------------------------------------------------------------------

const detail = {
  said: null, isAsked: false, isAgain: false,

  // What was asked for meanwhile is asked for once more.
  async ask() {
    if (detail.isAsked) {
      detail.isAgain = true;
      return;
    }
    detail.isAsked = true;
    const id = view.route;
    try {
      const answer = await fetch(`/api/sensor?id=${encodeURIComponent(id)}`);
      if (answer.status === 401) return location.replace("/login");
      if (view.route === id) detail.take(id, answer.status === 200 ? await answer.json() : null);
    } catch {
      link.isLost = true; // the stream will say when it is back
    } finally {
      setTimeout(() => {
        detail.isAsked = false;
        if (detail.isAgain && view.route !== null) detail.isAgain = false, detail.ask();
      }, 1000);
    }
  },

  take(id, said) {
    detail.said = said;
    say($("sensor-title"), id);
    for (const section of document.querySelectorAll(".cards")) section.hidden = said === null;
    if (said === null) {
      $("sensor-state").replaceChildren("Nothing has come from a sensor of this id.");
      list($("sensor-remarks"), [], null);
      return;
    }
    const sensor = { ...{ is_overdue: false, remarks: [], tags: [], verdict: "", level_db: null, heard_at_s: null, lag_s: null, is_calibrated: false }, ...said.sensor };
    drawHead(sensor, said);
    drawNow(sensor);
    drawLevel(sensor, said);
    drawHeat(said);
    drawFigures(said);
    drawOwn(said.sounds);
    facts($("health"), healthFacts(said.health));
    facts($("info"), infoFacts(said.info));
  },
};

function drawHead(sensor) {
  const state = condition(sensor);
  const text = stateWords(sensor);
  if ($("sensor-state").key !== state + text) {
    $("sensor-state").key = state + text;
    $("sensor-state").replaceChildren(shape(state), text);
  }
  list($("sensor-remarks"), sensor.remarks, (remark) => el("li", {}, remark));
}

function drawNow(sensor) {
  const made = $("now").made ?? makeNow();
  say(made.level, sensor.level_db === null ? "–" : figure(sensor.level_db));
  say(made.unit, sensor.level_db === null ? "" : ` ${unit(sensor)}`);
  drawTags(made.tags, sensor);
  made.heardAt = sensor.heard_at_s;
  made.lag = sensor.lag_s;
  drawNowAgo(made);
}

function makeNow() {
  const made = { level: el("span"), unit: el("small"), tags: el("ul", { class: "chips", "aria-label": "heard in it" }), ago: el("span", { class: "hint" }) };
  $("now").append(el("span", { class: "big" }, made.level, made.unit), made.tags, made.ago);
  return ($("now").made = made);
}

function drawNowAgo(made) {
  const lag = made.lag === null ? "" : `, ${made.lag.toFixed(1)} s after its end`;
  say(made.ago, made.heardAt === null ? "no window yet" : `came ${span(Math.max(nowS() - made.heardAt, 0))} ago${lag}`);
}

function ticks(said, width) {
  const every = width < 420 ? 1200 : 600;
  const end = (said.last_cell + 1) * said.cell_s, start = end - said.level_db.length * said.cell_s;
  const found = [];
  for (let at = Math.ceil(start / every) * every; at < end; at += every) found.push([((at - start) / (end - start)) * width, clock(at, false)]);
  return found;
}

function drawLevel(sensor, said) {
  const left = 34, width = Math.max($("level").clientWidth - left, 100), height = window.matchMedia("(max-width: 46rem)").matches ? 132 : 180;
  const heard = said.level_db.filter((level) => level !== null);
  const [least, most] = range(heard, 20);
  const low = Math.floor(least / 10) * 10, high = Math.ceil(most / 10) * 10;
  const y = (level) => height - ((level - low) / (high - low)) * height;
  const line = curve(said.level_db, width, height, low, high);
  const x = (index) => (index / (said.level_db.length - 1)) * width;
  const under = runs(said.level_db).map((run) => `M${x(run[0][0]).toFixed(1)} ${height}${run.map(([index, level]) => `L${x(index).toFixed(1)} ${y(level).toFixed(1)}`).join("")}L${x(run.at(-1)[0]).toFixed(1)} ${height}z`).join("");
  const drawing = svg("g", { transform: `translate(${left} 8)` });
  const step = high - low > 60 ? 20 : 10;
  for (let level = low; heard.length && level <= high; level += step) {
    drawing.append(svg("path", { class: "grid", d: `M0 ${y(level).toFixed(1)}h${width}` }), svg("text", { x: -6, y: y(level) + 4, "text-anchor": "end" }, figure(level, 0)));
  }
  for (const [at, text] of ticks(said, width)) drawing.append(svg("path", { class: "grid", d: `M${at.toFixed(1)} 0v${height}` }), svg("text", { x: Math.min(at, width - 16), y: height + 17, "text-anchor": "middle" }, text));
  drawing.append(svg("path", { class: "under", d: under }), svg("path", { class: "curve", d: line }));
  const words = heard.length ? `LAeq in ${unit(sensor)}, mean of every ten seconds: ${figure(Math.min(...heard))} to ${figure(Math.max(...heard))}; times are by the clock of this browser.` : "No window has come in the last hour.";
  $("level").replaceChildren(svg("svg", { viewBox: `0 0 ${width + left} ${height + 26}`, role: "img", "aria-label": words }, drawing));
  say($("level-said"), words);
}

function ramp() {
  const style = getComputedStyle(document.documentElement);
  const stops = [0, 1, 2, 3, 4].map((index) => style.getPropertyValue(`--ramp-${index}`).trim().match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16)));
  return (percent) => {
    const at = Math.min(percent / 25, 3.999), index = Math.floor(at), part = at - index;
    return stops[index].map((from, channel) => Math.round(from + (stops[index + 1][channel] - from) * part));
  };
}

function drawHeat(said) {
  const colour = ramp();
  const key = JSON.stringify(said.tags.map(({ id, name }) => [id, name]));
  if ($("heat").key !== key) {
    $("heat").key = key;
    $("heat").made = said.tags.map(({ name }) => ({ name: el("span", { class: "name" }, name), strip: el("canvas", { width: said.level_db.length, height: 1, role: "img" }), said: el("span", { class: "said" }) }));
    $("heat").replaceChildren(...$("heat").made.map((made) => el("div", { class: "tag" }, made.name, made.strip, made.said)),
      el("div", { class: "tag" }, svg("svg", { class: "axis", "aria-hidden": "true" })));
  }
  said.tags.forEach((tag, index) => drawStrip($("heat").made[index], tag, colour));
  const axis = $("heat").querySelector(".axis");
  axis.replaceChildren(...ticks(said, axis.clientWidth || 300).map(([at, text]) => svg("text", { x: Math.max(Math.min(at, (axis.clientWidth || 300) - 18), 18), y: 12, "text-anchor": "middle" }, text)));
}

function drawStrip(made, { name, percents: values }, colour) {
  const context = made.strip.getContext("2d");
  const image = context.createImageData(values.length, 1);
  values.forEach((percent, index) => {
    if (percent !== null) image.data.set([...colour(percent), 255], 4 * index);
  });
  context.putImageData(image, 0, 0);
  const heard = values.filter((percent) => percent !== null);
  const text = heard.length ? `now ${percents(heard.at(-1))}, at most ${percents(Math.max(...heard))}` : "";
  say(made.said, text);
  set(made.strip, "aria-label", `${name}: ${text}`);
}

function drawFigures(said) {
  const per = 300 / said.cell_s, start = (said.last_cell + 1) * said.cell_s - said.level_db.length * said.cell_s;
  const head = ["from", "LAeq", ...said.tags.map(({ name }) => name)];
  const lines = Array.from({ length: said.level_db.length / per }, (_, index) => {
    const of = (values) => values.slice(index * per, (index + 1) * per).filter((value) => value !== null);
    const levels = of(said.level_db);
    const mean = levels.length ? figure(10 * Math.log10(levels.reduce((sum, level) => sum + 10 ** (level / 10), 0) / levels.length)) : "–";
    return [clock(start + index * 300, false), mean, ...said.tags.map((tag) => (of(tag.percents).length ? `${Math.max(...of(tag.percents))} %` : "–"))];
  });
  list($("figures").tHead, [head], (cells) => el("tr", {}, ...cells.map((cell) => el("th", { scope: "col" }, cell))));
  list($("figures").tBodies[0], lines, ([first, ...cells]) => el("tr", {}, el("th", { scope: "row" }, first), ...cells.map((cell) => el("td", {}, cell))));
}

function drawOwn(sounds) {
  const lines = [...sounds].reverse().map((sound) => [sound.start_s, soundWords(sound), lasted({ is_over: false, ...sound })]);
  list($("own").tBodies[0], lines, ([start, what, lasting]) => el("tr", {}, el("td", {}, clock(start)), el("td", {}, what), el("td", {}, lasting)));
  $("own").hidden = !lines.length;
  $("own-silence").hidden = lines.length > 0;
}

function facts(parent, pairs) {
  list(parent, pairs, ([name, value]) => {
    const both = document.createDocumentFragment();
    both.append(el("dt", {}, name), el("dd", {}, value));
    return both;
  });
}

function healthFacts(health) {
  if (health === null) return [["", "It has said nothing of it yet: it does every minute."]];
  const { bundle, delivery: { outbox, connects_last_hour, last_error }, audio, load } = health;
  const facts = [
    ["said at", health.at ? clock(Date.parse(health.at) / 1000) : ""],
    ["up for", span(health.uptime_s)],
    ["windows", health.windows.toLocaleString("en")],
    ["processor", health.uptime_s ? `${((100 * health.cpu_s) / health.uptime_s).toFixed(1)} % of one core` : ""],
    ["memory", `${health.rss_mb.toFixed(0)} MB`],
    ["disk free", health.disk_free_mb === null ? "" : `${(health.disk_free_mb / 1000).toFixed(1)} GB`],
    ["temperature", health.temperature_c === null ? "" : `${health.temperature_c.toFixed(0)} °C`],
    ["outbox", `${outbox.depth.toLocaleString("en")} waiting, ${outbox.dropped.toLocaleString("en")} dropped, ${outbox.refused.toLocaleString("en")} refused`],
    ["outbox fault", outbox.fault],
    ["connected", connects_last_hour ? `${count(connects_last_hour, "time")} in the last hour` : ""],
    ["last error", last_error],
    ["microphone", audio === null ? "" : audio.device || "none"],
    ["lost audio", audio === null ? "" : `${span(audio.lost_s)} of ${span(audio.heard_s + audio.lost_s)}, ${count(audio.overruns, "overrun")}`],
    ["left out", load === null ? "" : `${count(load.windows_skipped, "window")}, ${load.branches_skipped.toLocaleString("en")} branches`],
    ["bundle", bundle.state === "ok" ? "" : `another one was refused: ${bundle.reason}`],
  ];
  return facts.filter(([, value]) => value !== "");
}

function infoFacts(info) {
  if (info === null) return [["", "It has not said."]];
  const facts = [
    ["edgetag", info.edgetag],
    ["bundle", `${info.bundle} ${info.bundle_sha256.slice(0, 12)}`.trim()],
    ["variant", info.variant],
    ["taxonomy", info.taxonomy],
    ["window", `${info.window_s} s, every ${info.hop_s} s`],
  ];
  return facts.filter(([, value]) => value !== "");
}

// -- where we are -----------------------------------------------------------------------------------------

function go() {
  const found = location.hash.match(/^#\/sensor\/(.+)$/);
  let id = null;
  try {
    id = found && decodeURIComponent(found[1]);
  } catch { /* no id is written like that */ }
  const hadRoute = view.route;
  view.route = id;
  $("overview").hidden = id !== null;
  $("sensor").hidden = id === null;
  if (id !== null) {
    say($("sensor-title"), id);
    detail.ask();
    document.title = `${id} – edgetag`;
    set($("sensor-title"), "tabindex", "-1");
    $("sensor-title").focus();
  } else {
    drawStates();
    if (hadRoute !== null) rows.get(hadRoute)?.item.querySelector("a").focus();
  }
  if (hadRoute !== id) window.scrollTo(0, 0);
}

function tick() {
  watchLink();
  drawLink();
  say($("clock"), new Date(nowS() * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" }));
  if (view.route !== null) {
    if ($("now").made) drawNowAgo($("now").made);
  } else {
    for (const [id, made] of rows) if (model.sensors.has(id)) drawAgo(made, model.sensors.get(id).row);
  }
}

function tickSlowly() {
  if (view.route !== null) return detail.ask();
  for (const [id, made] of rows) if (model.sensors.has(id)) drawSpark(made, model.sensors.get(id).minutes);
  drawSounds();
}

function redrawDetail() {
  if (view.route !== null && detail.said) detail.take(view.route, detail.said);
}

makeStates();
$("find").addEventListener("input", (event) => {
  view.find = event.target.value.trim().toLowerCase();
  arrange();
});
$("order").addEventListener("change", (event) => {
  view.order = event.target.value;
  arrange();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the sensor
  $("main").focus();
});
addEventListener("hashchange", go);
addEventListener("resize", redrawDetail);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawDetail);
link.heardAt = performance.now();
connect();
go();
setInterval(tick, 1000);
setInterval(tickSlowly, 10000);
