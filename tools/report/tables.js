/* The tables: configs (sortable), baselines of a GPU, one head under all configs, and the worst heads of a config. */

function span(kind, ...children) {
  return element("span", { class: kind || null }, ...children);
}

function td(kind, ...children) {
  return element("td", { class: kind || null }, ...children);
}

/* A heading: scope says of what, "row", "col" or "colgroup". */
function th(kind, scope, ...children) {
  return element("th", { class: kind || null, scope }, ...children);
}

function figureCell(figure, kind) {
  if (figure.state !== "nonfinite" && figure.state !== "infinite") return td(kind, figure.text);
  const mark = span("nonfinite", figure.text);
  if (figure.count) mark.title = `${plural(figure.count, "element")} not finite`;
  return td(kind, mark);
}

function operandText(operand) {
  const { dtype, granularity, block, transform } = operand;
  const scale = granularity === "none" ? "" : "/" + granularity + (block || "");
  return dtype + scale + (transform === "none" ? "" : "+" + transform);
}

/* ["QK e4m3/head+hadamard", "V e4m3/head", "P e4m3"]: operands of one format share an entry. */
function formatTexts(formats) {
  const groups = new Map();
  for (const operand of ["q", "k", "v"]) {
    const text = operandText(formats[operand]);
    groups.set(text, (groups.get(text) || "") + operand.toUpperCase());
  }
  return [...groups].map(([text, names]) => `${names} ${text}`).concat(`P ${formats.p.dtype}`);
}

function recipeCell(config) {
  const formats = formatTexts(config.formats).flatMap((text) => [span("entry", text), " "]);
  const front = config.onFront ? span("badge", "front") : null;
  if (front) front.title = "On the Pareto front";
  const text = span(null, ...breakable(config.recipe), front, span("sub", ...formats));
  return th("first text wrap", "row", span("name", keyBadge(config), text));
}

function kernelCell(config) {
  const { isa, name } = config.kernel;
  const cell = td("text", isa, span("sub", name.replace(/^attention_/, "")));
  cell.title = name;
  return cell;
}

function timeCell(config) {
  const { median_ms: median, min_ms: min, max_ms: max, repeats } = config.timing;
  const cell = td(null, numberText(median), span("sub", `${numberText(min)}–${numberText(max)}`));
  cell.title = `median of ${plural(repeats, "pass", "passes")}`;
  return cell;
}

function bitsCell(config) {
  return td(null, bitsText(config.kv_bits), span("sub", bytesText(config.timing.kv_bytes)));
}

function speedupCell(config) {
  const factor = config.timing.x_baseline;
  return td(null, factor === null ? "–" : numberText(factor) + "×");
}

/* An error of worst_heads: null there means that the head's output was not finite. */
function worstText(error) {
  return error === null ? span("nonfinite", "NaN/Inf") : numberText(error);
}

function worstCell(config) {
  const { layer, head, rel_l2: error } = config.worst_heads[0];
  return td(null, worstText(error), span("sub", `layer ${layer} head ${head}`));
}

/* Columns of the configs table: value sorts (null last), cell draws. down: largest first. */
function configColumns(view) {
  const error = (part, id) => {
    const metric = { ...ERROR_METRICS.find((m) => m.id === id), part };
    return {
      value: (c) => c.summary[part][id],
      cell: (c) => figureCell(readFigure(c.summary, metric)),
    };
  };
  const number = (read) => ({ value: read, cell: (c) => td(null, numberText(read(c))) });
  const worst = (c) => c.worst_heads[0].rel_l2 === null ? Infinity : c.worst_heads[0].rel_l2;
  const counts = view.choice.counts;
  return [
    {
      key: "recipe",
      label: "Recipe",
      kind: "first text",
      value: (c) => c.recipe,
      cell: recipeCell,
    },
    {
      key: "observer",
      label: "Observer",
      kind: "text",
      value: (c) => c.observer,
      cell: (c) => td("text", c.observer || "–"),
    },
    {
      key: "kernel",
      label: "Kernel",
      kind: "text",
      value: (c) => c.kernel.isa + c.kernel.name,
      cell: kernelCell,
    },
    { key: "bits", label: "K/V bits", value: (c) => c.kv_bits, cell: bitsCell },
    { key: "ms", label: "ms", value: (c) => c.timing.median_ms, cell: timeCell },
    { key: "gops", label: "GOP/s", down: true, ...number((c) => c.timing.gops) },
    {
      key: "speedup",
      label: "× bf16",
      down: true,
      value: (c) => c.timing.x_baseline,
      cell: speedupCell,
    },
    { key: "quant", label: "quant", group: "relative L2", ...error("quant", "rel_l2") },
    { key: "kernel-error", label: "kernel", group: "relative L2", ...error("kernel", "rel_l2") },
    { key: "total", label: "total", group: "relative L2", ...error("total", "rel_l2") },
    { key: "cosine", label: "Cosine", down: true, ...error("total", "cosine") },
    { key: "worst", label: "Worst head", down: true, value: worst, cell: worstCell },
    {
      key: "heads",
      label: "Heads",
      down: true,
      value: (c) => counts[c.index],
      cell: (c) => td(null, String(counts[c.index])),
    },
  ];
}

function sortConfigs(configs, column, descending) {
  return [...configs].sort((a, b) => {
    const x = column.value(a), y = column.value(b);
    if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (descending ? -order : order) || a.index - b.index;
  });
}

function drawConfigs(view) {
  const { model, state } = view, columns = configColumns(view);
  const by = columns.find((column) => column.key === state.sort.key);
  const sorted = by ? sortConfigs(model.configs, by, state.sort.descending) : model.configs;
  const rows = sorted.map((config) => {
    const picked = state.mapConfig === config.index ? "picked" : null;
    const cells = columns.map((column) => column.cell(config));
    return element("tr", { class: picked, "data-config": config.index }, ...cells);
  });
  const table = document.getElementById("configs");
  const focused = document.activeElement && document.activeElement.dataset.sort;
  table.replaceChildren(configHead(view, columns), element("tbody", null, ...rows));
  if (focused) table.querySelector(`[data-sort="${focused}"]`).focus();
}

function configHead(view, columns) {
  const { sort } = view.state;
  const first = columns.findIndex((column) => column.group);
  const grouped = columns.filter((column) => column.group).length;
  const groups = [th("first", null), th(null, "colgroup", span(null, columns[first].group)), th()];
  groups[0].colSpan = first;
  groups[1].colSpan = grouped;
  groups[2].colSpan = columns.length - first - grouped;
  const headings = columns.map((column) => {
    const onclick = () => view.sortBy(column);
    const attributes = { class: "sort", type: "button", "data-sort": column.key, onclick };
    const heading = th(column.kind, "col", element("button", attributes, column.label));
    if (sort.key === column.key) heading.ariaSort = sort.descending ? "descending" : "ascending";
    return heading;
  });
  return element(
    "thead",
    null,
    element("tr", { class: "group" }, ...groups),
    element("tr", null, ...headings),
  );
}

/* What the configs of a GPU are compared with; nothing on the CPU. */
function drawBaselines(report) {
  const baselines = report.baselines;
  document.getElementById("baselines-section").hidden = baselines.length === 0;
  const columns = ["ms", "GOP/s", "× bf16", "relative L2", "Cosine"];
  const rows = baselines.map((baseline) => {
    const name = th("first text", "row", baseline.id);
    if (baseline.skipped !== null) {
      const reason = td("text wrap", `not run: ${baseline.skipped}`);
      reason.colSpan = columns.length;
      return element("tr", null, name, reason);
    }
    const { gops } = baseline.timing, { total } = baseline;
    return element(
      "tr",
      null,
      name,
      timeCell(baseline),
      td(null, gops === null ? "–" : numberText(gops)),
      speedupCell(baseline),
      td(null, worstText(total.rel_l2)),
      td(null, total.cosine === null ? "–" : figureText(total.cosine, "cosine")),
    );
  });
  const headings = columns.map((name) => th(null, "col", name));
  document.getElementById("baselines").replaceChildren(
    element("thead", null, element("tr", null, th("first text", "col", "Baseline"), ...headings)),
    element("tbody", null, ...rows),
  );
}

/* What the table of one head shows: name, what it is of, metric. */
function headColumns(topK) {
  return [
    ["total", "relative L2", "total.rel_l2"],
    ["quant", "relative L2", "quant.rel_l2"],
    ["kernel", "relative L2", "kernel.rel_l2"],
    ["rel. L1", "total", "total.rel_l1"],
    ["RMSE", "total", "total.rmse"],
    ["max abs", "total", "total.max_abs"],
    ["cosine", "total", "total.cosine"],
    ["SQNR dB", "total", "total.sqnr_db"],
    ["max abs", "LSE", "lse.max_abs"],
    ["KL, nats", "softmax", "softmax_kl"],
    [`top-${topK}`, "softmax", "top_k_agreement"],
  ];
}

/* All configs on the head that was picked. */
function drawHead(view) {
  const { model, state, choice } = view, head = model.heads[state.head];
  const chosen = choice.byHead[head.index], columns = headColumns(model.report.top_k);
  document.getElementById("head-title").textContent = `Layer ${head.layer} · head ${head.head}`;
  document.getElementById("head-note").textContent = headNote(view, head, chosen);
  const metrics = columns.map(([, , key]) => view.metrics.find((metric) => metric.key === key));
  const rows = model.ranked.map((config) => {
    const scores = config.scores[head.index];
    const verdict = config.errors[head.index] <= state.budget ? "within" : "over";
    const badge = config === chosen ? span("badge", "chosen") : null;
    const name = span("name", keyBadge(config), span(null, shorten(config.id, 44), badge));
    const cells = metrics.map((metric, index) =>
      figureCell(readFigure(scores, metric), index === 0 ? verdict : null)
    );
    const attributes = { class: config === chosen ? "picked" : null };
    const bits = td(null, bitsText(config.kv_bits));
    return element("tr", attributes, th("first text", "row", name), bits, ...cells);
  });
  const headings = columns.map(([name, of]) => th(null, "col", name, span("sub", of)));
  const first = [th("first text", "col", "Config, fewest bits first"), th(null, "col", "K/V bits")];
  document.getElementById("head-table").replaceChildren(
    element("thead", null, element("tr", null, ...first, ...headings)),
    element("tbody", null, ...rows),
  );
}

function headNote(view, head, chosen) {
  const { model, state } = view, kv = model.kvHeads[head.kv];
  const shape = model.report.recording.layers[head.row];
  const lives = chosen
    ? `Lives with ${chosen.id} (${bitsText(chosen.kv_bits)} bits)`
    : "No config serves it";
  const shared = kv.heads.length > 1 ? `, shared by ${kv.heads.length} query heads` : "";
  return `${lives} at a budget of ${plainText(state.budget)}. ` +
    `head_dim ${shape.head_dim}, reads KV head ${kv.head}${shared}.`;
}

function drawWorst(view) {
  const { model, state } = view, config = model.configs[state.worstConfig];
  const finite = config.worst_heads.map((worst) => worst.rel_l2).filter((error) => error > 0);
  const high = Math.max(...finite, state.budget) * 1.05;
  const rows = config.worst_heads.map((worst, rank) => worstRow(view, config, worst, rank, high));
  const error = th("text", "col", "Relative L2, the budget marked");
  error.colSpan = 2;
  const headings = [
    td(),
    th("text", "col", "Head"),
    error,
    th(null, "col", "Cosine"),
    th("text", "col", "Lives with, at the budget"),
  ];
  document.getElementById("worst").replaceChildren(
    element("thead", null, element("tr", null, ...headings)),
    element("tbody", null, ...rows),
  );
}

/* A head's name, which shows it in the head table. */
function headLink(view, head) {
  const onclick = () => view.pickHead(head.index, true);
  const text = `layer ${head.layer} head ${head.head}`;
  return element("button", { class: "link", type: "button", onclick }, text);
}

/* One of the worst heads of a config; its bar is drawn on a scale up to `high`. */
function worstRow(view, config, worst, rank, high) {
  const { model, state, choice } = view, { layer, head: number, rel_l2: error } = worst;
  const head = model.heads.find((h) => h.layer === layer && h.head === number);
  const best = choice.byHead[head.index], lost = error === null;
  const bar = span("bar-fill"), mark = span("bar-mark"), track = span("bar-track", bar, mark);
  bar.style.width = lost ? "100%" : 100 * error / high + "%";
  bar.style.background = lost ? "var(--alarm)" : config.color;
  mark.style.left = 100 * state.budget / high + "%";
  track.ariaHidden = "true";
  const lives = best
    ? [keyBadge(best), span(null, `${best.id}, ${bitsText(best.kv_bits)} bits`)]
    : [unmetBadge(), span(null, "no config here")];
  return element(
    "tr",
    null,
    td("rank", String(rank + 1)),
    th("text", "row", headLink(view, head)),
    td(lost || error > state.budget ? "over" : "within", worstText(error)),
    td("bar-cell", track),
    td(null, worst.cosine === null ? "–" : figureText(worst.cosine, "cosine")),
    td("text", span("name", ...lives)),
  );
}
