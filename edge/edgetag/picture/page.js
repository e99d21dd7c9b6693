"use strict";
// The picture of one recording. `data` is all there is: nothing is fetched, nothing leaves the page.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const chart = $("chart"), audio = $("audio"), cursor = $("cursor");
  const ROW = 18, MIN_VIEW_S = 2, DOTTED_PX = 9;
  // Matplotlib's magma and viridis (CC0), at 17 places.
  const MAGMA = colours("000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf");
  const VIRIDIS = colours("440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725");
  const view = { from: 0, to: data.duration };
  let at = 0, css = readCss();

  function colours(stops) {
    const rgb = stops.split(" ").map((hex) => [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16)));
    return Array.from({ length: 256 }, (_, index) => {
      const place = (index / 255) * (rgb.length - 1), low = Math.min(Math.floor(place), rgb.length - 2);
      return rgb[low].map((value, k) => Math.round(value + (rgb[low + 1][k] - value) * (place - low)));
    });
  }
  const css_of = (table, share) => `rgb(${table[Math.max(0, Math.min(255, Math.round(share * 255)))].join(",")})`;

  function readCss() {
    const style = getComputedStyle(document.documentElement);
    const names = ["ink", "soft", "line", "paper", "lost", "pale", "hatch", "band", "laeq"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  // -- what is known -----------------------------------------------------------------------------------

  // A byte is half a decibel above -120 dB, and one more; 0 is unknown.
  const codes = Uint8Array.from(atob(data.spectrogram.codes), (c) => c.charCodeAt(0));
  const graph = data.spectrogram;
  const windows = data.windows.map(([start, end, from, to, verdict, laeq, lafmax, la90, valid, p, refined, active]) => ({
    start, end, from, to, verdict, laeq, lafmax, la90, valid,
    p: new Map(data.ids.map((id, k) => [id, p.length ? p[k] : null])),
    refined: new Set(refined), active: new Set(active),
  }));
  const name_of = new Map(data.ids.map((id, k) => [id, data.names[k]]));

  function windowAt(time) {
    let low = 0, high = windows.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (windows[middle].to <= time) low = middle + 1; else high = middle;
    }
    return windows[low];
  }

  // -- drawing -----------------------------------------------------------------------------------------

  const image = document.createElement("canvas");
  function paintSpectrogram() {
    image.width = graph.columns; image.height = graph.bands;
    const context = image.getContext("2d"), pixels = context.createImageData(graph.columns, graph.bands);
    const [low, high] = graph.range;
    for (let band = 0; band < graph.bands; band++) for (let column = 0; column < graph.columns; column++) {
      const code = codes[band * graph.columns + column];
      if (!code) continue;
      const share = ((code - 1) / 2 - 120 - low) / (high - low);
      const rgb = MAGMA[Math.max(0, Math.min(255, Math.round(share * 255)))];
      pixels.data.set([...rgb, 255], 4 * ((graph.bands - 1 - band) * graph.columns + column));
    }
    context.putImageData(pixels, 0, 0);
  }

  function prepared(id) {
    const canvas = $(id), height = Number(canvas.dataset.height) || ROW * Math.max(1, Number(canvas.dataset.rows));
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const x = (time) => ((time - view.from) / (view.to - view.from)) * width;
    return { context, width, height, x };
  }
  const visible = () => windows.filter((window) => window.to > view.from && window.from < view.to);

  function drawSpectrogram() {
    const { context, width, height } = prepared("spectrogram");
    context.fillStyle = css.lost;
    context.fillRect(0, 0, width, height);
    const from = view.from / graph.column_s, n = (view.to - view.from) / graph.column_s;
    context.imageSmoothingEnabled = n > width;
    context.drawImage(image, from, 0, n, graph.bands, 0, 0, width, height);
    put("hertz", graph.ticks.map(([band, words]) => [1 - (band + 0.5) / graph.bands, words]), height);
  }

  function put(id, places, height) {
    const names = $(id);
    names.style.height = `${height}px`;
    names.replaceChildren(...places.map(([share, words]) => {
      const name = document.createElement("b");
      name.textContent = words;
      name.style.top = `${Math.max(6, Math.min(height - 6, share * height))}px`;
      return name;
    }));
  }

  function drawLevel() {
    const { context, width, height, x } = prepared("level");
    const lowest = windows.reduce((db, w) => Math.min(db, w.la90), Infinity);
    const highest = windows.reduce((db, w) => Math.max(db, w.lafmax), -Infinity);
    const room = Math.max(2, 0.1 * (highest - lowest)), low = lowest - room, high = highest + room;
    const y = (db) => ((high - db) / (high - low)) * height;
    const steps = [1, 2, 5, 10, 20, 50], step = steps.find((s) => (high - low) / s <= 4) || 100, ticks = [];
    for (let db = Math.ceil(low / step) * step; db <= high; db += step) ticks.push(db);
    context.fillStyle = css.line;
    ticks.forEach((db) => context.fillRect(0, y(db), width, 1));
    context.fillStyle = css.band;
    context.strokeStyle = css.laeq;
    context.lineWidth = 1.6;
    context.beginPath();
    let before = null;
    for (const window of visible()) {
      const left = x(window.from), right = x(window.to);
      context.fillRect(left, y(window.lafmax), right - left, Math.max(1, y(window.la90) - y(window.lafmax)));
      if (before === window.from) context.lineTo(left, y(window.laeq)); else context.moveTo(left, y(window.laeq));
      context.lineTo(right, y(window.laeq));
      before = window.to;
    }
    context.stroke();
    put("levels", ticks.map((db, k) => [y(db) / height, k === ticks.length - 1 ? `${db} ${data.unit}` : `${db}`]), height);
  }

  function drawTags(id, ids, isFine) {
    const { context, width, height, x } = prepared(id);
    context.fillStyle = css.paper;
    context.fillRect(0, 0, width, height);
    for (const window of visible()) {
      const left = x(window.from), wide = Math.max(x(window.to) - left, 0.5);
      if (data.untagged[window.verdict]) { hatch(context, window.verdict, left, wide, height); continue; }
      ids.forEach((tag, row) => {
        const p = window.p.get(tag), active = window.active.has(tag);
        if (p === null || (isFine && !active && !window.refined.has(tag.split("-")[0]))) return;
        const tall = isFine ? (active ? ROW - 3 : 5) : ROW, top = row * ROW + (ROW - tall) / 2;
        context.fillStyle = css_of(VIRIDIS, p / 100);
        context.fillRect(left, top, wide + (isFine ? 0 : 0.5), tall);
        if (!isFine && active && wide > DOTTED_PX) {
          context.fillStyle = p > 60 ? "#000" : "#fff";
          context.beginPath();
          context.arc(left + wide / 2, row * ROW + ROW / 2, 2, 0, 7);
          context.fill();
        }
      });
    }
    context.fillStyle = css.line;
    if (isFine) context.fillRect(0, 0, width, 1);
  }

  function hatch(context, verdict, left, wide, height) {
    context.save();
    context.beginPath(); context.rect(left, 0, wide, height); context.clip();
    context.fillStyle = css.pale; context.fillRect(left, 0, wide, height);
    context.strokeStyle = css.hatch; context.beginPath();
    const from = Math.floor((left - height) / 7) * 7;
    for (let place = from; verdict !== "silent" && place < left + wide + height; place += 7) {
      context.moveTo(place, height); context.lineTo(place + height, 0);
      if (verdict === "too_little_audio") { context.moveTo(place, 0); context.lineTo(place + height, height); }
    }
    context.stroke(); context.restore();
  }

  function drawTimes() {
    const { context, width, x } = prepared("times");
    const steps = [0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
    const span = view.to - view.from, step = steps.find((s) => span / s <= width / 85) || 86400 * Math.ceil(span / 86400 / 8);
    const shift = data.start === null ? 0 : ((data.start % step) + step) % step;
    context.fillStyle = css.soft; context.font = "11px system-ui, sans-serif"; context.textBaseline = "top";
    for (let time = Math.ceil((view.from + shift) / step) * step - shift; time <= view.to + 1e-6; time += step) {
      const place = x(time), words = clock(time, step < 1 ? 1 : 0), wide = context.measureText(words).width;
      context.fillRect(place, 0, 1, 5);
      context.fillText(words, Math.max(0, Math.min(width - wide, place - wide / 2)), 8);
    }
  }

  function drawScales() {
    for (const [id, table] of [["dbscale", MAGMA], ["pscale", VIRIDIS]]) {
      const context = $(id).getContext("2d");
      for (let k = 0; k < 96; k++) { context.fillStyle = css_of(table, k / 95); context.fillRect(k, 0, 1, 10); }
    }
    $("dbrange").textContent = `${graph.range[0]} to ${graph.range[1]} dB re full scale, a band`;
  }

  function draw() {
    drawSpectrogram(); drawLevel(); drawTags("coarse", data.coarse, false); drawTags("fine", data.fine, true); drawTimes();
    showCursor();
  }

  // -- the cursor --------------------------------------------------------------------------------------

  function clock(time, digits) {
    if (data.start !== null) return new Date(Math.round((data.start + time) * 1000)).toISOString().slice(11, digits ? 21 : 19);
    const total = Math.round(time * 10 ** digits) / 10 ** digits, hours = Math.floor(total / 3600), minutes = Math.floor(total / 60) % 60;
    const seconds = (total % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${seconds}` : `${minutes}:${seconds}`;
  }

  function showCursor() {
    const canvas = $("coarse"), share = (at - view.from) / (view.to - view.from);
    cursor.style.display = share < 0 || share > 1 ? "none" : "block";
    cursor.style.left = `${canvas.offsetLeft + share * canvas.clientWidth}px`;
  }

  const bars = new Map(data.coarse.map((id) => {
    const item = document.createElement("li"), words = document.createElement("span"), frame = document.createElement("i");
    const bar = document.createElement("u"), number = document.createElement("em");
    words.textContent = name_of.get(id); frame.append(bar); item.append(words, frame, number); $("tags").append(item);
    return [id, { item, bar, number }];
  }));

  function say() {
    const window = windowAt(at), place = data.start === null ? clock(at, 1) : `${clock(at, 1)} UTC (${place_words(at)})`;
    $("at").textContent = place;
    $("window").textContent = `window ${clock(window.start, 0)} to ${clock(Math.min(window.end, data.duration), 0)}`
      + (window.valid < 100 ? `, ${window.valid} % of it heard` : "");
    const [laeq, lafmax, la90] = [window.laeq, window.lafmax, window.la90].map((db) => db.toFixed(1).replace("-", "−"));
    $("loud").textContent = `LAeq ${laeq} ${data.unit} · LAFmax ${lafmax} · LA90 ${la90}`;
    for (const [id, { item, bar, number }] of bars) {
      const p = window.p.get(id);
      item.classList.toggle("active", window.active.has(id));
      bar.style.width = `${p ?? 0}%`;
      number.textContent = p === null ? "–" : `${p} %`;
    }
    const heard = (ids) => ids.filter((id) => window.active.has(id)).map((id) => `${name_of.get(id)} ${window.p.get(id)} %`);
    const kinds = heard(data.fine), active = heard(data.coarse);
    const untagged = data.untagged[window.verdict];
    $("kinds").textContent = untagged ? `Not tagged: ${untagged}.` : kinds.length ? `Kinds: ${kinds.join(", ")}` : "";
    chart.setAttribute("aria-valuenow", at.toFixed(1));
    chart.setAttribute("aria-valuetext", `${place}, ${laeq} ${data.unit}, ${untagged || active.concat(kinds).join(", ") || "nothing"}`);
    for (const row of rows) row.classList.toggle("now", Number(row.dataset.from) <= at && at < Number(row.dataset.to));
  }
  function place_words(time) { const start = data.start; data.start = null; const words = clock(time, 1); data.start = start; return words; }
  const rows = [...document.querySelectorAll("tr[data-from]")];

  function moveTo(time, { seeks = false } = {}) {
    at = Math.max(0, Math.min(data.duration, time));
    if (seeks && !audio.hidden && Number.isFinite(audio.duration)) audio.currentTime = Math.min(at, audio.duration);
    const span = view.to - view.from;
    if (at < view.from || at > view.to) { look(at - span / 4, span); }
    showCursor(); say();
  }

  function look(from, span) {
    span = Math.max(Math.min(MIN_VIEW_S, data.duration), Math.min(data.duration, span));
    view.from = Math.max(0, Math.min(data.duration - span, from));
    view.to = view.from + span;
    draw();
  }
  const zoom = (factor) => {
    const span = (view.to - view.from) * factor, share = (at - view.from) / (view.to - view.from);
    look(at - span * share, span);
  };

  function step(n) {
    const here = windows.indexOf(windowAt(at)), there = windows[Math.max(0, Math.min(windows.length - 1, here + n))];
    moveTo((there.from + there.to) / 2, { seeks: true });
  }

  function timeOf(event) {
    const box = $("coarse").getBoundingClientRect();
    return view.from + ((event.clientX - box.left) / box.width) * (view.to - view.from);
  }
  const follows = () => !audio.hidden && !audio.paused;
  chart.addEventListener("pointerdown", (event) => { if (event.button === 0) moveTo(timeOf(event), { seeks: true }); });
  chart.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) moveTo(timeOf(event), { seeks: true });
    else if (event.pointerType === "mouse" && audio.hidden) moveTo(timeOf(event));
  });
  chart.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const does = {
      ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(1), ArrowDown: () => step(-1),
      PageUp: () => step(10), PageDown: () => step(-10),
      Home: () => moveTo(0, { seeks: true }), End: () => moveTo(data.duration, { seeks: true }),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => look(0, data.duration),
      " ": () => { if (!audio.hidden) { if (audio.paused) audio.play(); else audio.pause(); } },
    }[event.key];
    if (does) { event.preventDefault(); does(); }
  });
  $("in").addEventListener("click", () => zoom(0.5));
  $("out").addEventListener("click", () => zoom(2));
  $("all").addEventListener("click", () => look(0, data.duration));
  document.querySelectorAll("button[data-at]").forEach((button) =>
    button.addEventListener("click", () => moveTo(Number(button.dataset.at), { seeks: true })));

  // -- the recording, if the reader has it -------------------------------------------------------------

  let address = "";
  $("file").addEventListener("change", (event) => {
    const file = event.target.files[0];
    if (!file) return;
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(file);
    $("complaint").textContent = "";
    audio.src = address;
    audio.hidden = false;
  });
  audio.addEventListener("error", () => {
    audio.hidden = true;
    $("complaint").textContent = "This browser cannot play that file.";
  });
  audio.addEventListener("loadedmetadata", () => {
    const differs = Number.isFinite(audio.duration) && Math.abs(audio.duration - data.duration) > 1;
    $("complaint").textContent = differs
      ? `That file lasts ${place_words(audio.duration)}, this picture ${place_words(data.duration)}: is it the same recording?` : "";
    audio.currentTime = Math.min(at, audio.duration);
  });
  for (const news of ["timeupdate", "seeked"]) audio.addEventListener(news, () => moveTo(audio.currentTime));
  function follow() { if (follows()) moveTo(audio.currentTime); requestAnimationFrame(follow); }
  audio.addEventListener("play", () => requestAnimationFrame(follow), { once: true });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { css = readCss(); draw(); });
  new ResizeObserver(draw).observe(chart);
  paintSpectrogram(); drawScales(); draw(); moveTo(0);
})();
