/* The page: its state, the answer in words, and what happens when something is changed. */

const SLIDER_STEPS = 400;

class View {
  constructor(report) {
    this.model = buildModel(report);
    this.metrics = listMetrics(report.top_k);
    this.domain = budgetDomain(this.model);
    this.given = report.choice.budget;
    this.choice = choose(this.model, this.given);
    const frugal = this.model.ranked[0];
    const worst = frugal.worst_heads[0];
    this.state = {
      budget: this.given,
      metric: "total.rel_l2",
      mapConfig: -1, // -1: what each head chose
      worstConfig: frugal.index,
      head: this.model.heads.findIndex((h) => h.layer === worst.layer && h.head === worst.head),
      sort: { key: null, descending: false },
    };
    this.choiceMap = new HeadMap(this, document.getElementById("map-choice"));
    this.errorMap = new HeadMap(this, document.getElementById("map-error"));
    this.wire();
  }

  wire() {
    const { model, metrics } = this;
    const names = model.configs.map((config) => [config.index, `${config.key}  ${config.id}`]);
    options("metric", metrics.map((m) => [m.key, m.title, m.group]), this.state.metric, (key) => {
      this.state.metric = key;
      paintErrorMap(this);
    });
    options(
      "map-config",
      [[-1, "chosen for each head"], ...names],
      this.state.mapConfig,
      (index) => this.selectConfig(Number(index)),
    );
    options("worst-config", names, this.state.worstConfig, (index) => {
      this.state.worstConfig = Number(index);
      drawWorst(this);
    });
    const slider = document.getElementById("budget"),
      exact = document.getElementById("budget-number");
    const reset = document.getElementById("budget-reset");
    const [low, high] = this.domain;
    slider.max = SLIDER_STEPS;
    slider.addEventListener(
      "input",
      () =>
        this.setBudget(
          Number((low * (high / low) ** (slider.value / SLIDER_STEPS)).toPrecision(3)),
        ),
    );
    exact.addEventListener("change", () => {
      const value = Number(exact.value.replace(",", "."));
      this.setBudget(value > 0 && Number.isFinite(value) ? value : this.state.budget);
    });
    reset.textContent = `Report's ${plainText(this.given)}`;
    reset.addEventListener("click", () => this.setBudget(this.given));
    let frame = 0;
    window.addEventListener("resize", () => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => this.drawAll());
    });
  }

  setBudget(budget) {
    this.state.budget = budget;
    this.choice = choose(this.model, budget);
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawChoice());
  }

  sortBy(column) {
    const { sort } = this.state;
    const again = sort.key === column.key;
    const descending = again ? !sort.descending : Boolean(column.down);
    this.state.sort = { key: column.key, descending };
    drawConfigs(this);
  }

  /* A config picked in the plot: picked again, it is let go. */
  pickConfig(index) {
    const picked = this.state.mapConfig === index ? -1 : index;
    if (picked >= 0) {
      this.state.worstConfig = picked;
      document.getElementById("worst-config").value = picked;
      drawWorst(this);
    }
    document.getElementById("map-config").value = picked;
    this.selectConfig(picked);
    const dot = document.querySelector(`.point[data-config="${index}"]`);
    if (dot) dot.focus({ preventScroll: true });
  }

  selectConfig(index) {
    this.state.mapConfig = index;
    drawPlot(this);
    drawConfigs(this);
    paintErrorMap(this);
  }

  pickHead(index, scroll) {
    this.state.head = index;
    drawHead(this);
    this.showCursors(null);
    if (scroll) document.getElementById("maps-heading").scrollIntoView();
  }

  hoverHead(index) {
    this.showCursors(index);
  }

  showCursors(hovered) {
    for (const map of [this.choiceMap, this.errorMap]) map.show(hovered, this.state.head);
  }

  drawChoice() {
    const [low, high] = this.domain, { budget } = this.state;
    const slider = document.getElementById("budget"),
      exact = document.getElementById("budget-number");
    slider.value = Math.round(SLIDER_STEPS * Math.log(budget / low) / Math.log(high / low));
    slider.setAttribute("aria-valuetext", `${plainText(budget)} relative L2`);
    exact.value = plainText(budget);
    document.getElementById("budget-reset").disabled = budget === this.given;
    drawAnswer(this);
    drawComposition(this);
    drawUniform(this);
    drawCurve(this);
    drawPlot(this);
    drawConfigs(this);
    paintChoiceMap(this);
    paintErrorMap(this);
    drawHead(this);
    drawWorst(this);
    this.showCursors(null);
  }

  drawAll() {
    layoutMaps(this);
    this.drawChoice();
  }
}

/* entries: [value, text, group]. */
function options(id, entries, value, change) {
  const select = document.getElementById(id), groups = new Map();
  for (const [key, text, group] of entries) {
    const option = element("option", { value: key }, shorten(text, 60));
    if (!group) {
      select.append(option);
      continue;
    }
    if (!groups.has(group)) {
      groups.set(group, element("optgroup", { label: group }));
      select.append(groups.get(group));
    }
    groups.get(group).append(option);
  }
  select.value = value;
  select.addEventListener("change", () => change(select.value));
}

/* "At a budget of 0.05 relative L2, 30 of 72 heads live with int4: a mean of 7.0 bits ..." */
function drawAnswer(view) {
  const { model, choice } = view, total = model.heads.length;
  const most = model.ranked.reduce(
    (best, config) =>
      choice.counts[config.index] > (best ? choice.counts[best.index] : 0) ? config : best,
    null,
  );
  const strong = (text) => element("strong", null, text);
  const parts = [`At a budget of ${plainText(choice.budget)} relative L2, `];
  if (!most) {
    const text = `no head can live with any of ${plural(model.configs.length, "config")}`;
    parts.push(span("alarm", text), ".");
  } else {
    const count = choice.counts[most.index];
    parts.push(strong(`${count} of ${plural(total, "head")}`));
    parts.push(count === 1 ? " lives with " : " live with ", strong(shorten(most.id, 40)));
    parts.push(...meanWords(choice.meanBits, strong));
  }
  document.getElementById("answer").replaceChildren(...parts);
  drawStats(view);
}

function meanWords(bits, strong) {
  const text = bits.toFixed(1);
  if (text === "16.0") {
    return [", and the mean over all stays at ", strong("16 bits"), " per K/V element."];
  }
  const than = bits < 16 ? "instead of 16." : "where bf16 takes 16.";
  return [", and the mean over all is ", strong(`${text} bits`), " per K/V element ", than];
}

function drawStats(view) {
  const { model, choice } = view, total = model.heads.length, met = total - choice.unmet;
  const fastest = model.configs.reduce((a, b) => b.timing.median_ms < a.timing.median_ms ? b : a);
  const stat = (name, value, detail) => {
    const small = detail ? element("small", null, detail) : null;
    return element("div", null, element("dt", null, name), element("dd", null, value, " ", small));
  };
  const items = [
    stat("K/V cache", cacheText(16 / choice.meanBits), "than bf16"),
    stat("Within the budget", `${met}`, `of ${plural(total, "head")}`),
    stat("Worst chosen error", met ? numberText(choice.worst) : "–", "relative L2"),
  ];
  const gain = fastest.timing.x_baseline;
  if (gain !== null && fastest.index !== 0) {
    items.push(stat("Fastest config", `${numberText(gain)}× bf16`, shorten(fastest.id, 24)));
  }
  const broken = model.configs.filter((config) => config.summary.total.nonfinite > 0);
  if (broken.length) {
    const names = broken.map((config) => shorten(config.id, 24)).join(", ");
    items.push(stat("Output not finite", span("nonfinite", names)));
  }
  document.getElementById("stats").replaceChildren(...items);
}

function cacheText(ratio) {
  if (Math.abs(ratio - 1) < 0.005) return "no smaller";
  return ratio > 1 ? `${ratio.toPrecision(2)}× smaller` : `${(1 / ratio).toPrecision(2)}× larger`;
}

function drawComposition(view) {
  const { model, choice } = view, total = model.heads.length;
  const used = model.ranked.filter((config) => choice.counts[config.index] > 0);
  const width = document.getElementById("share").clientWidth;
  const segments = used.map((config) => {
    const count = choice.counts[config.index], room = width * count / total - 18;
    const long = `${shorten(config.id, 34)} · ${count}`;
    const text = [long, config.key, ""].find((words) => textWidth(words, 13, 600) < room) || "";
    const style = { background: config.color, color: inkOn(config.color) };
    return segment(count, text, null, style);
  });
  const items = used.map((config) => {
    const count = choice.counts[config.index];
    const detail = `${bitsText(config.kv_bits)} bits`;
    return legendItem(keyBadge(config), count, shorten(config.id, 60), detail);
  });
  if (choice.unmet) {
    const name = "no config meets the budget", detail = "counted at the recorded width";
    segments.push(segment(choice.unmet, "", "unmet"));
    items.push(legendItem(unmetBadge(), choice.unmet, name, detail));
  }
  document.getElementById("share").replaceChildren(...segments);
  document.getElementById("share-legend").replaceChildren(...items);
}

/* "One recipe for all heads: int8 (9 bits). fp8/mse (8 bits) breaks 3 heads: layer 1 head 9, ..." */
function drawUniform(view) {
  const SHOWN = 8;
  const { model, choice } = view, { chosen, close } = chooseUniform(model, choice.budget);
  const named = (config) => [
    element("b", null, shorten(config.id, 60)),
    ` (${bitsText(config.kv_bits)} bits)`,
  ];
  const parts = [];
  if (chosen) {
    parts.push("One recipe for all heads: ", ...named(chosen.config));
    parts.push(`, worst head ${numberText(chosen.worst)}. `);
  } else {
    parts.push("No recipe here meets the budget on all heads. ");
  }
  if (close) {
    const count = close.broken.length, shown = close.broken.slice(0, SHOWN);
    parts.push(...named(close.config), ` breaks ${plural(count, "head")}: `);
    shown.forEach((head, at) => parts.push(at ? ", " : "", headLink(view, head)));
    parts.push(count > SHOWN ? ` and ${count - SHOWN} more.` : ".");
  }
  document.getElementById("uniform").replaceChildren(...parts);
}

function segment(count, text, kind, style) {
  const size = { flexGrow: count, flexBasis: 0, padding: text ? "" : "0" };
  return element("div", { class: kind, style: { ...size, ...style } }, text);
}

function legendItem(badge, count, name, detail) {
  const number = element("b", null, String(count));
  return element("li", null, badge, span(null, number, ` ${name} `, span("dim", detail)));
}

/* What hides keys, in words: the recording's causality, and what the audit was asked to add. */
function maskText({ causal, mask }) {
  const parts = [causal ? "causal" : "full"];
  if (!mask) return parts[0];
  const keys = (count) => (count < 0 ? "all keys" : plural(count, "key"));
  if (mask.window_left >= 0 || mask.window_right >= 0) {
    const after = causal ? "" : ` and ${keys(mask.window_right)} after`;
    parts.push(`a window of ${keys(mask.window_left)} before${after} a query's own`);
  }
  if (mask.block_q > 0) {
    const queries = plural(mask.block_q, "query", "queries");
    parts.push(`block-sparse in blocks of ${queries} × ${keys(mask.block_kv)}`);
  }
  if (mask.keep > 0) {
    parts.push(`the first ${mask.keep === 1 ? "key" : keys(mask.keep)} always seen`);
  }
  return parts.join(", ");
}

/* A mask the audit added changes what every figure means, so it is said next to the answer. */
function drawMaskNote({ recording }) {
  const note = document.getElementById("mask-note");
  note.hidden = !recording.mask;
  note.textContent = recording.mask
    ? `Errors and times are those under the audit's mask: ${maskText(recording)}.`
    : "";
}

/* Positions are missing from every figure, so that is said there too. */
function drawRopeNote({ recording }) {
  const note = document.getElementById("rope-note");
  note.hidden = recording.rope !== "before";
  note.textContent = note.hidden
    ? ""
    : "Q and K were recorded before RoPE and not rotated: all errors are those of attention without positions, not the model's.";
}

function drawProvenance(report) {
  const { recording, machine, headroom } = report;
  const shapes = new Set(
    recording.layers.map((shape) =>
      `${shape.num_heads}/${shape.num_kv_heads} × ${shape.head_dim} ${shape.dtype}`
    ),
  );
  document.getElementById("provenance").replaceChildren(
    factList("Recording", [
      ["Model", recording.model],
      ["File", recording.path, "mono"],
      ["Data hash", recording.data_hash, "mono"],
      ["Tokens", `${recording.total_tokens} in ${plural(recording.batch, "sequence")}`],
      ["Layers", layerNumbers(recording.layers)],
      ["Heads/KV × dim", [...shapes].join(", ")],
      ["Mask", maskText(recording)],
      ["Softmax scale", plainText(recording.softmax_scale)],
      ["RoPE", recording.rope],
    ]),
    factList("Machine", [
      ["CPU", machine.cpu],
      ["Instruction sets", machine.isa.join(", ")],
      ["Threads", machine.threads],
      ["Compiler", machine.compiler],
      ["System", machine.os],
    ]),
    factList("Report", [
      ["Headroom", headroom.version],
      ["Commit", headroom.commit, "mono"],
      ["Made", report.created],
      ["Timed passes", report.configs[0].timing.repeats],
      ["Configs", report.configs.length],
      ["Schema", `${report.schema} ${report.schema_version}`],
    ]),
  );
}

function factList(title, rows) {
  const facts = rows.flatMap(([name, value, kind]) => [
    element("dt", null, name),
    element("dd", { class: kind }, value === null || value === "" ? "–" : String(value)),
  ]);
  return element("div", null, element("h3", null, title), element("dl", null, ...facts));
}

/* "0–5, 8 (7)": runs of layer numbers and how many. */
function layerNumbers(layers) {
  const runs = [];
  for (const { layer } of layers) {
    const last = runs[runs.length - 1];
    if (last && last[1] === layer - 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  return runs.map(([a, b]) => (a === b ? a : `${a}–${b}`)).join(", ") + ` (${layers.length})`;
}

const tip = document.getElementById("tip");

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 14, y = event.clientY + 14;
  const fits = y + height + 8 <= window.innerHeight;
  tip.style.left = Math.max(4, Math.min(x, window.innerWidth - width - 8)) + "px";
  tip.style.top = (fits ? y : Math.max(4, event.clientY - height - 12)) + "px";
}

function hideTip() {
  tip.hidden = true;
}

/* Follows the system until the button is used; the choice is kept where the browser allows it. */
function wireTheme(changed) {
  const system = matchMedia("(prefers-color-scheme: dark)"),
    button = document.getElementById("theme");
  let stored = null;
  try {
    stored = localStorage.getItem("headroom-theme");
  } catch {
    stored = null;
  }
  const apply = () => {
    const dark = stored ? stored === "dark" : system.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light theme" : "Dark theme";
    changed();
  };
  system.addEventListener("change", apply);
  button.addEventListener("click", () => {
    stored = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("headroom-theme", stored);
    } catch { /* kept for this visit only */ }
    apply();
  });
  apply();
}

function start() {
  let view = null;
  wireTheme(() => {
    if (view) view.drawChoice();
  });
  try {
    const report = readReport(), { model } = report.recording;
    document.title = `Headroom report: ${model || report.recording.path}`;
    document.getElementById("subject").textContent = model || report.recording.path;
    document.getElementById("report").hidden = false;
    view = new View(report);
    drawMaskNote(report);
    drawRopeNote(report);
    drawProvenance(report);
    drawBaselines(report);
    view.drawAll();
  } catch (error) {
    const failure = document.getElementById("failure");
    document.getElementById("report").hidden = true;
    failure.textContent = `This report cannot be shown. ${error.message}`;
    failure.hidden = false;
    console.error(error);
  }
}

start();
