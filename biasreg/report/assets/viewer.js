// The viewer: what is chosen, what is drawn, and what keys and fingers do.

const MODES = ["fixed", "moving", "warped", "blend", "checkerboard", "colours"];
const NARROW = 720; // pixels of width below which the three views are laid out for a phone
const FLICKER_MS = 600; // slower than anything that may harm

function startViewer(root) {
  const settings = JSON.parse(document.getElementById("viewer-data").textContent);
  const tables = Object.fromEntries(Object.entries(settings.colours).map(([name, text]) => [name, bytesOf(text)]));
  const find = (selector) => root.querySelector(selector);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const state = {
    index: 0, mode: "warped", other: "warped", overlay: "none", blend: 50, opacity: 60, grid: false, crosshair: false,
    fixedOutlines: true, otherOutlines: true, byLabel: true, smooth: true, hidden: new Set(), position: [0, 0, 0],
    active: 0, enlarged: null,
  };
  const panels = all(".view").map((element, number) => ({
    view: VIEWS[number],
    element,
    canvas: element.querySelector("canvas"),
    slider: element.querySelector("input"),
    output: element.querySelector("output"),
    slice: document.createElement("canvas"),
    outlines: new Map(),
  }));
  const loaded = new Map();
  let pair = null;
  let waiting = 0;
  let timer = null;

  async function choose(index) {
    stopFlicker();
    state.index = index;
    find("#viewer-pair").value = String(index);
    root.dataset.state = "loading";
    all(".pair-details").forEach((element) => { element.hidden = Number(element.dataset.pair) !== index; });
    if (!loaded.has(index)) loaded.set(index, loadPair(settings.pairs[index], index));
    if (loaded.size > 2) loaded.delete([...loaded.keys()].find((key) => key !== index)); // the others are unpacked again
    let found = null;
    try {
      found = await loaded.get(index);
    } catch (error) {
      loaded.delete(index);
      return fail(error);
    }
    if (state.index !== index) return undefined; // another pair was chosen meanwhile
    pair = found;
    pair.planes.clear();
    panels.forEach((panel) => panel.outlines.clear());
    state.position = [...pair.meta.start];
    state.hidden.clear();
    listLabels();
    layOut();
    return update();
  }

  function fail(error) {
    root.dataset.state = "failed";
    const message = find(".viewer-message");
    message.hidden = false;
    message.textContent = typeof DecompressionStream === "undefined"
      ? "This browser cannot unpack the images (it lacks DecompressionStream). Use a current Firefox, Chrome, Edge or Safari."
      : `The images of this pair cannot be unpacked: ${error.message}`;
  }

  function listLabels() {
    const list = find(".viewer-labels");
    list.replaceChildren(...pair.meta.labels.map((label, position) => {
      const item = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      const chip = Object.assign(document.createElement("span"), { className: "chip" });
      chip.style.background = labelColour(position + 1);
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(position + 1); else state.hidden.add(position + 1);
        update();
      });
      item.append(box, chip, label.name);
      return item;
    }));
    find(".viewer-label-group").hidden = pair.meta.labels.length === 0;
  }

  // Sizes: one scale for all views, so that a millimetre is as long in each.
  function layOut() {
    const width = find(".views").clientWidth;
    const sizes = panels.map((panel) => sizeOf(pair, panel.view));
    const narrow = width < NARROW;
    const gap = 12;
    const tallest = Math.max(260, window.innerHeight * (narrow ? 0.5 : 0.62));
    let scale = 0;
    if (state.enlarged !== null) {
      const size = sizes[state.enlarged];
      scale = Math.min(width / size.widthMm, Math.max(260, window.innerHeight * 0.72) / size.heightMm);
    } else if (narrow) {
      scale = Math.min((width - gap) / (sizes[0].widthMm + sizes[1].widthMm), width / sizes[2].widthMm);
    } else {
      scale = (width - 2 * gap) / sizes.reduce((sum, size) => sum + size.widthMm, 0);
    }
    scale = Math.min(scale, ...sizes.map((size) => tallest / size.heightMm).filter(() => state.enlarged === null));
    panels.forEach((panel, number) => {
      const size = sizes[number];
      const density = window.devicePixelRatio || 1;
      panel.element.hidden = state.enlarged !== null && state.enlarged !== number;
      const [across, down] = [Math.floor(size.widthMm * scale), Math.floor(size.heightMm * scale)];
      panel.canvas.style.width = `${across}px`;
      panel.canvas.style.height = `${down}px`;
      panel.element.style.width = `${across}px`;
      panel.canvas.width = Math.round(across * density);
      panel.canvas.height = Math.round(down * density);
      panel.slider.max = String(size.slices - 1);
    });
  }

  function update() {
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); });
  }

  function draw() {
    if (!pair) return;
    syncControls();
    panels.filter((panel) => !panel.element.hidden).forEach(drawPanel);
    readOut();
    root.dataset.state = "ready";
    root.dataset.showing = state.mode;
  }

  function drawPanel(panel) {
    const { view, canvas, slice } = panel;
    const position = state.position[view.cut];
    const { columns, rows } = sizeOf(pair, view);
    paintSlice(slice, pair, view, position, state, tables);
    const context = canvas.getContext("2d");
    const scale = [canvas.width / columns, canvas.height / rows];
    const density = window.devicePixelRatio || 1;
    context.imageSmoothingEnabled = state.smooth;
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, canvas.width, canvas.height); // smoothing leaves the border translucent
    context.drawImage(slice, 0, 0, canvas.width, canvas.height);
    if (state.grid) {
      strokeLines(context, deformedGrid(pair, view, position), scale, { colour: "#ffffff", width: density, alpha: 0.65 });
    }
    const moved = state.mode === "moving" || (state.mode !== "warped" && state.other === "moving") ? "moving_labels" : "warped_labels";
    if (state.fixedOutlines) drawOutlines(panel, context, scale, "fixed_labels", []);
    if (state.otherOutlines) drawOutlines(panel, context, scale, moved, [4 * density, 3 * density]);
    if (state.crosshair) drawCrosshair(panel, context, scale, density);
    panel.slider.value = String(position);
    panel.output.textContent = `${position + 1} / ${pair.shape[view.cut]}`;
  }

  function drawOutlines(panel, context, scale, name, dash) {
    const volume = pair[name];
    if (!volume) return;
    const position = state.position[panel.view.cut];
    const key = `${name}/${position}`;
    if (panel.outlines.size > 40) panel.outlines.clear();
    if (!panel.outlines.has(key)) panel.outlines.set(key, outlines(pair, volume, panel.view, position));
    const density = window.devicePixelRatio || 1;
    for (const [label, lines] of panel.outlines.get(key)) {
      if (state.hidden.has(label)) continue;
      const byImage = name === "fixed_labels" ? FIXED_COLOUR : OTHER_COLOUR;
      const colour = state.byLabel ? labelColour(label) : byImage;
      strokeLines(context, lines, scale, { colour: "#000000", width: 3 * density, alpha: 0.55, dash });
      strokeLines(context, lines, scale, { colour, width: 1.6 * density, dash });
    }
  }

  function drawCrosshair(panel, context, scale, density) {
    const { view, canvas } = panel;
    const { columns, rows } = sizeOf(pair, view);
    const x = (columns - state.position[view.across] - 0.5) * scale[0];
    const y = (rows - state.position[view.up] - 0.5) * scale[1];
    const lines = [[[x, 0], [x, canvas.height]], [[0, y], [canvas.width, y]]];
    strokeLines(context, lines, [1, 1], { colour: "#ffffff", width: density, alpha: 0.6, dash: [2 * density, 3 * density] });
  }

  function readOut() {
    const [x, y, z] = state.position;
    const step = strides(pair.shape);
    const voxel = x * step[0] + y * step[1] + z * step[2];
    const d = displacementAt(pair, samplesOf(pair), x, y, z);
    const name = (volume) => (volume && volume[voxel] ? pair.meta.labels[volume[voxel] - 1].name : "none");
    const ends = [["R", "L"], ["A", "P"], ["S", "I"]];
    const digits = Math.min(...pair.spacing) < 0.5 ? 2 : 1;
    const parts = d.map((value, axis) => `${Math.abs(value).toFixed(digits)} ${ends[axis][value < 0 ? 1 : 0]}`);
    const folded = pair.determinant[voxel] === 0;
    const texts = {
      displacement: `${Math.hypot(...d).toFixed(digits)} mm (${parts.join(", ")})`,
      determinant: folded ? "folds" : determinantOf(pair.determinant[voxel]).toFixed(2),
      labels: pair.fixed_labels ? `${name(pair.fixed_labels)} / ${name(pair.warped_labels)}` : "–",
    };
    for (const [key, text] of Object.entries(texts)) find(`[data-read="${key}"]`).textContent = text;
  }

  function syncControls() {
    all("[data-mode]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.mode === state.mode)));
    all("[data-overlay]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.overlay === state.overlay)));
    all("[data-other]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.other === state.other)));
    all("[data-switch]").forEach((box) => { box.checked = state[box.dataset.switch]; });
    find("#viewer-blend").value = String(state.blend);
    find("#viewer-opacity").value = String(state.opacity);
    find(".blend-control").hidden = state.mode !== "blend";
    find(".opacity-control").hidden = state.overlay === "none";
    all("[data-bar]").forEach((bar) => { bar.hidden = bar.dataset.bar !== state.overlay; });
    find("[data-longest]").textContent = `${pair.meta.longest.toFixed(1)} mm`;
    find("[data-folding]").textContent = `folding, ${pair.meta.folding.toFixed(3)} %`;
    find("[data-flicker]").setAttribute("aria-pressed", String(timer !== null));
    const words = { fixed: "fixed image", moving: "moving image, not registered", warped: "warped image" };
    const versus = state.other === "warped" ? "fixed and warped image" : "fixed and moving image";
    const said = words[state.mode] || `${state.mode}, ${versus}`;
    find(".viewer-mode").textContent = said;
    panels.forEach(({ view, canvas, slider }) => {
      canvas.setAttribute("aria-label", `${view.name} slice ${state.position[view.cut] + 1} of ${pair.shape[view.cut]}: ${said}`);
      slider.setAttribute("aria-valuetext", `slice ${state.position[view.cut] + 1} of ${pair.shape[view.cut]}`);
    });
  }

  function set(changes) {
    Object.assign(state, changes);
    update();
  }

  function flick() {
    set({ mode: state.mode === "fixed" ? state.other : "fixed" });
  }

  function stopFlicker() {
    clearInterval(timer);
    timer = null;
  }

  function toggleFlicker() {
    if (timer === null) timer = setInterval(flick, FLICKER_MS); else stopFlicker();
    update();
  }

  function move(number, amount) {
    if (!pair) return;
    const { cut } = VIEWS[number];
    const limit = pair.shape[cut] - 1;
    const position = [...state.position];
    position[cut] = Math.min(limit, Math.max(0, position[cut] + amount));
    set({ position, active: number });
  }

  function enlarge(number) {
    state.enlarged = state.enlarged === number ? null : number;
    root.classList.toggle("enlarged", state.enlarged !== null);
    all("[data-enlarge]").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.enlarge) === state.enlarged)));
    layOut();
    update();
  }

  // A touch on a view leads the other two there.
  function point(panel, event) {
    const box = panel.canvas.getBoundingClientRect();
    const { columns, rows } = sizeOf(pair, panel.view);
    const clamp = (value, size) => Math.min(size - 1, Math.max(0, value));
    const position = [...state.position];
    position[panel.view.across] = clamp(columns - 1 - Math.floor(((event.clientX - box.left) / box.width) * columns), columns);
    position[panel.view.up] = clamp(rows - 1 - Math.floor(((event.clientY - box.top) / box.height) * rows), rows);
    set({ position, active: panels.indexOf(panel) });
  }

  const toggle = (name) => set({ [name]: !state[name] });
  const toggleOverlay = (name) => set({ overlay: state.overlay === name ? "none" : name });
  const toggleOutlines = () => {
    const shown = !(state.fixedOutlines || state.otherOutlines);
    set({ fixedOutlines: shown, otherOutlines: shown });
  };
  const count = settings.pairs.length;
  const actions = {
    " ": flick, f: toggleFlicker, c: toggleOutlines, g: () => toggle("grid"), x: () => toggle("crosshair"),
    d: () => toggleOverlay("displacement"), j: () => toggleOverlay("determinant"),
    b: () => set({ other: state.other === "warped" ? "moving" : "warped" }),
    n: () => choose((state.index + 1) % count), p: () => choose((state.index + count - 1) % count),
  };
  MODES.forEach((mode, number) => { actions[String(number + 1)] = () => set({ mode }); });

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
    const ranged = event.target.matches("input[type=range]");
    const pressed = event.target.closest("button, summary, input[type=checkbox]");
    const amount = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 }[event.key];
    if (amount && !ranged) move(state.active, amount * (event.shiftKey ? 5 : 1));
    else if (event.key === " " && pressed) return;
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  }

  function connect() {
    root.addEventListener("keydown", onKey);
    document.addEventListener("keydown", (event) => { // nothing has the focus; what scrolls the page goes on doing so
      if (event.target === document.body && !/^(Arrow|Page| )/.test(event.key)) onKey(event);
    });
    find("#viewer-pair").addEventListener("change", (event) => choose(Number(event.target.value)));
    const clicked = (selector, act) => all(selector).forEach((button) => button.addEventListener("click", (event) => {
      act(button);
      if (event.detail) panels[state.active].canvas.focus({ preventScroll: true }); // after a mouse, keys are for the slices
    }));
    clicked("[data-mode]", (button) => set({ mode: button.dataset.mode }));
    clicked("[data-other]", (button) => set({ other: button.dataset.other }));
    clicked("[data-overlay]", (button) => set({ overlay: button.dataset.overlay }));
    clicked("[data-flicker]", toggleFlicker);
    clicked("[data-step]", (button) => actions[button.dataset.step]());
    clicked("[data-enlarge]", (button) => enlarge(Number(button.dataset.enlarge)));
    all("[data-switch]").forEach((box) => box.addEventListener("change", () => set({ [box.dataset.switch]: box.checked })));
    find("#viewer-blend").addEventListener("input", (event) => set({ blend: Number(event.target.value) }));
    find("#viewer-opacity").addEventListener("input", (event) => set({ opacity: Number(event.target.value) }));
    panels.forEach((panel, number) => {
      panel.slider.addEventListener("input", () => move(number, Number(panel.slider.value) - state.position[panel.view.cut]));
      panel.canvas.addEventListener("focus", () => { state.active = number; });
      panel.canvas.addEventListener("pointerdown", (event) => { if (pair) point(panel, event); });
      panel.canvas.addEventListener("pointermove", (event) => { if (pair && event.buttons === 1) point(panel, event); });
    });
    document.querySelectorAll("[data-look]").forEach((link) => link.addEventListener("click", () => choose(Number(link.dataset.look))));
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (!pair || entry.contentRect.width === width) return; // the views' own height is what layOut sets
      width = entry.contentRect.width;
      layOut();
      update();
    }).observe(find(".views"));
  }

  connect();
  choose(0);
}

const viewer = document.querySelector(".viewer");
if (viewer) startViewer(viewer);
