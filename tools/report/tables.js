/* The tables: configs (sortable), one head under all configs, and the worst heads of a config. */

function figureCell(figure, extra) {
  if (figure.state === "nonfinite" || figure.state === "infinite")
    return element("td", extra, element("span", {
      class: "nonfinite", title: figure.count ? `${plural(figure.count, "element")} not finite` : null }, figure.text));
  return element("td", extra, figure.text);
}

function operandText(operand) {
  const scale = operand.granularity === "none" ? "" : "/" + operand.granularity +
    (operand.block ? operand.block : "");
  const transform = operand.transform === "none" ? "" : "+" + operand.transform;
  return operand.dtype + scale + transform;
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

function configCell(config, kind) {
  return element("th", { class: "first text wrap " + (kind || ""), scope: "row" },
    element("span", { class: "name" }, keyBadge(config),
      element("span", null, ...breakable(config.recipe),
        config.onFront ? element("span", { class: "badge", title: "On the Pareto front" }, "front") : null,
        element("span", { class: "sub" }, ...formatTexts(config.formats).flatMap((text) =>
          [element("span", { class: "entry" }, text), " "])))));
}

function kernelCell(config) {
  return element("td", { class: "text", title: config.kernel.name }, config.kernel.isa,
    element("span", { class: "sub" }, config.kernel.name.replace(/^attention_/, "")));
}

function timeCell(config) {
  const { median_ms: median, min_ms: min, max_ms: max, repeats } = config.timing;
  return element("td", { title: `median of ${plural(repeats, "pass").replace("passs", "passes")}` }, numberText(median),
    element("span", { class: "sub" }, `${numberText(min)}–${numberText(max)}`));
}

/* The worst head is the report's own; its error is not finite when it is null. */
function worstCell(config) {
  const worst = config.worst_heads[0];
  const value = worst.rel_l2 === null ? element("span", { class: "nonfinite" }, "NaN/Inf") : numberText(worst.rel_l2);
  return element("td", null, value, element("span", { class: "sub" }, `layer ${worst.layer} head ${worst.head}`));
}

/* Columns of the configs table: value sorts (null last), cell draws. */
function configColumns(view) {
  const error = (part, id) => {
    const metric = { ...ERROR_METRICS.find((m) => m.id === id), part };
    return { value: (c) => c.summary[part][id], cell: (c) => figureCell(readFigure(c.summary, metric)) };
  };
  return [
    { key: "recipe", label: "Recipe", text: true, value: (c) => c.recipe, cell: (c) => configCell(c), header: true },
    { key: "observer", label: "Observer", text: true, value: (c) => c.observer,
      cell: (c) => element("td", { class: "text" }, c.observer || "–") },
    { key: "kernel", label: "Kernel", text: true, value: (c) => c.kernel.isa + c.kernel.name, cell: kernelCell },
    { key: "bits", label: "K/V bits", value: (c) => c.kv_bits,
      cell: (c) => element("td", null, bitsText(c.kv_bits), element("span", { class: "sub" }, bytesText(c.timing.kv_bytes))) },
    { key: "ms", label: "ms", value: (c) => c.timing.median_ms, cell: timeCell },
    { key: "gops", label: "GOP/s", value: (c) => c.timing.gops, down: true, cell: (c) => element("td", null, numberText(c.timing.gops)) },
    { key: "speedup", label: "× bf16", value: (c) => c.timing.x_baseline, down: true,
      cell: (c) => element("td", null, c.timing.x_baseline === null ? "–" : numberText(c.timing.x_baseline) + "×") },
    { key: "quant", label: "quant", group: "relative L2", ...error("quant", "rel_l2") },
    { key: "kernel_error", label: "kernel", group: "relative L2", ...error("kernel", "rel_l2") },
    { key: "total", label: "total", group: "relative L2", ...error("total", "rel_l2") },
    { key: "cosine", label: "Cosine", down: true, ...error("total", "cosine") },
    { key: "worst", label: "Worst head", down: true,
      value: (c) => c.worst_heads[0].rel_l2 === null ? Infinity : c.worst_heads[0].rel_l2, cell: worstCell },
    { key: "heads", label: "Heads", down: true, value: (c) => view.choice.counts[c.index],
      cell: (c) => element("td", null, String(view.choice.counts[c.index])) },
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
  const sorted = columns.find((column) => column.key === state.sort.key);
  const rows = sorted ? sortConfigs(model.configs, sorted, state.sort.descending) : model.configs;
  const table = document.getElementById("configs");
  const focused = document.activeElement && document.activeElement.dataset.sort;
  table.replaceChildren(configHead(view, columns), element("tbody", null, ...rows.map((config) =>
    element("tr", { class: state.mapConfig === config.index ? "picked" : "", "data-config": config.index },
            ...columns.map((column) => column.cell(config))))));
  if (focused) table.querySelector(`[data-sort="${focused}"]`).focus();
}

function configHead(view, columns) {
  const { sort } = view.state, first = columns.findIndex((column) => column.group);
  const grouped = columns.filter((column) => column.group).length;
  const heading = (column) => element("th", {
    scope: "col", class: (column.text ? "text" : "") + (column.header ? " first" : ""),
    "aria-sort": sort.key === column.key ? (sort.descending ? "descending" : "ascending") : null,
  }, element("button", { class: "sort", type: "button", "data-sort": column.key,
                         onclick: () => view.sortBy(column) }, column.label));
  return element("thead", null,
    element("tr", { class: "group" },
            element("th", { colspan: first, class: "first" }),
            element("th", { colspan: grouped, scope: "colgroup" }, element("span", null, columns[first].group)),
            element("th", { colspan: columns.length - first - grouped })),
    element("tr", null, ...columns.map(heading)));
}

/* All configs on the head that was picked. */
function drawHead(view) {
  const { model, state, choice } = view, head = model.heads[state.head], chosen = choice.byHead[head.index];
  const shape = model.report.recording.layers[head.row], kv = model.kvHeads[head.kv];
  document.getElementById("head-title").textContent = `Layer ${head.layer} · head ${head.head}`;
  document.getElementById("head-note").textContent =
    (chosen ? `Lives with ${chosen.id} (${bitsText(chosen.kv_bits)} bits)` : "No config serves it") +
    ` at a budget of ${plainText(state.budget)}. head_dim ${shape.head_dim}, reads KV head ${kv.head}` +
    (kv.heads.length > 1 ? `, shared by ${kv.heads.length} query heads.` : ".");
  const metric = (key) => view.metrics.find((m) => m.key === key);
  const columns = [
    ["total", "relative L2", "total.rel_l2"], ["quant", "relative L2", "quant.rel_l2"],
    ["kernel", "relative L2", "kernel.rel_l2"], ["rel. L1", "total", "total.rel_l1"], ["RMSE", "total", "total.rmse"],
    ["max abs", "total", "total.max_abs"], ["cosine", "total", "total.cosine"], ["SQNR dB", "total", "total.sqnr_db"],
    ["LSE max abs", "", "lse.max_abs"], ["KL, nats", "", "softmax_kl"],
    [`top-${model.report.top_k}`, "", "top_k_agreement"],
  ];
  const rows = model.ranked.map((config) => {
    const scores = config.scores[head.index], within = config.errors[head.index] <= state.budget;
    return element("tr", { class: config === chosen ? "picked" : "" },
      element("th", { class: "first text", scope: "row" }, element("span", { class: "name" }, keyBadge(config),
        element("span", null, shorten(config.id, 44), config === chosen ? element("span", { class: "badge" }, "chosen") : null))),
      element("td", null, bitsText(config.kv_bits)),
      ...columns.map(([, , key], index) => figureCell(readFigure(scores, metric(key)),
        index === 0 ? { class: within ? "within" : "over" } : null)));
  });
  document.getElementById("head-table").replaceChildren(
    element("thead", null, element("tr", null, element("th", { class: "first text", scope: "col" }, "Config, fewest bits first"),
      element("th", { scope: "col" }, "K/V bits"), ...columns.map(([name, over]) => element("th", { scope: "col" }, name,
        over ? element("span", { class: "sub" }, over) : null)))),
    element("tbody", null, ...rows));
}

function drawWorst(view) {
  const { model, state, choice } = view, config = model.configs[state.worstConfig];
  const finite = config.worst_heads.map((worst) => worst.rel_l2).filter((error) => error > 0);
  const high = Math.max(...finite, state.budget) * 1.05;
  const rows = config.worst_heads.map((worst, rank) => {
    const head = model.heads.find((h) => h.layer === worst.layer && h.head === worst.head);
    const best = choice.byHead[head.index], lost = worst.rel_l2 === null;
    const bar = element("span", { class: "bar-track", "aria-hidden": "true" },
      element("span", { class: "bar-fill", style: { width: lost ? "100%" : 100 * worst.rel_l2 / high + "%",
                                                    background: lost ? "var(--alarm)" : config.color } }),
      element("span", { class: "bar-mark", style: { left: 100 * state.budget / high + "%" } }));
    return element("tr", null,
      element("td", { class: "rank" }, String(rank + 1)),
      element("th", { class: "text", scope: "row" }, element("button", { class: "link", type: "button",
        onclick: () => view.pickHead(head.index, true) }, `layer ${worst.layer} head ${worst.head}`)),
      element("td", { class: lost || worst.rel_l2 > state.budget ? "over" : "within" },
        lost ? element("span", { class: "nonfinite" }, "NaN/Inf") : numberText(worst.rel_l2)),
      element("td", { class: "bar-cell" }, bar),
      element("td", null, worst.cosine === null ? "–" : figureText(worst.cosine, "cosine")),
      element("td", { class: "text" }, best
        ? element("span", { class: "name" }, keyBadge(best), element("span", null, `${best.id}, ${bitsText(best.kv_bits)} bits`))
        : element("span", { class: "name" }, unmetBadge(), element("span", null, "no config here"))));
  });
  document.getElementById("worst").replaceChildren(
    element("thead", null, element("tr", null, ...[["", ""], ["Head", "text"],
      ["Relative L2, the budget marked", "text", 2], ["Cosine", ""], ["Lives with, at the budget", "text"]].map(([name, kind, span]) =>
        element(name ? "th" : "td", { class: kind, scope: name ? "col" : null, colspan: span }, name)))),
    element("tbody", null, ...rows));
}
