/*
 * Layer x head maps: one of the chosen config, one of an error. Both have the same cells, one tab
 * stop (arrow keys move) and one cursor.
 */

class HeadMap {
  constructor(view, node) {
    this.view = view;
    this.node = node;
    this.focused = 0;
    node.addEventListener("pointermove", (event) => this.point(event));
    node.addEventListener("pointerleave", () => { hideTip(); view.hoverHead(null); });
    node.addEventListener("click", (event) => this.pick(this.indexOf(event.target)));
    node.addEventListener("keydown", (event) => this.key(event));
    node.addEventListener("focusin", (event) => this.focusIn(event));
    node.addEventListener("focusout", () => { hideTip(); view.hoverHead(null); });
  }

  indexOf(target) {
    return target.dataset.index === undefined ? null : Number(target.dataset.index);
  }

  /* Lays the cells out in `width` pixels. */
  layout(width) {
    const { heads, report } = this.view.model, shapes = report.recording.layers;
    const columns = Math.max(...shapes.map((shape) => shape.num_heads)), rows = shapes.length;
    this.left = 12 + Math.max(...shapes.map((shape) => textWidth(String(shape.layer), 11)));
    // Where all layers group their query heads alike, a gap shows which share a KV head.
    const groups = shapes.map((shape) => shape.num_heads / shape.num_kv_heads);
    const group = groups.every((size) => size === groups[0]) && groups[0] > 1 ? groups[0] : columns;
    const gaps = Math.ceil(columns / group) - 1, gap = 3;
    this.top = 34;
    const room = width - this.left - 2 - gaps * gap;
    this.cellWidth = Math.min(Math.max(room / columns, 7), 64);
    this.cellHeight = Math.min(Math.max(this.cellWidth, 10), rows > 40 ? 12 : rows > 16 ? 16 : 26);
    this.place = (head) => ({
      x: this.left + head.head * this.cellWidth + Math.floor(head.head / group) * gap,
      y: this.top + head.row * this.cellHeight,
    });
    const full = Math.max(120, this.left + columns * this.cellWidth + gaps * gap + 2);
    const height = this.top + rows * this.cellHeight + 2;
    fill(this.node, { viewBox: `0 0 ${full} ${height}`, width: full, height }, []);
    this.build(heads, shapes, columns);
  }

  build(heads, shapes, columns) {
    const inset = this.cellWidth >= 14 ? 1 : 0.5;
    this.cells = [];
    this.texts = [];
    const rows = shapes.map(() => svg("g", { role: "row" }));
    const labels = svg("g", { "aria-hidden": "true" });
    for (const head of heads) {
      const { x, y } = this.place(head);
      const cell = svg("rect", { class: "cell", x: x + inset, y: y + inset, rx: inset * 2, role: "gridcell",
                                 width: this.cellWidth - 2 * inset, height: this.cellHeight - 2 * inset,
                                 tabindex: head.index === this.focused ? 0 : -1, "data-index": head.index });
      rows[head.row].append(cell);
      this.cells.push(cell);
      this.texts.push(null);
    }
    const across = Math.ceil(24 / this.cellWidth), down = Math.ceil(14 / this.cellHeight);
    const step = (least, count) => [1, 2, 4, 5, 8, 10, 16, 20, 32].find((n) => n >= least) || count;
    for (let head = 0; head < columns; head += step(across, columns)) {
      const { x } = this.place({ head, row: 0 });
      labels.append(svg("text", { class: "muted", x: x + this.cellWidth / 2, y: this.top - 6,
                                  "text-anchor": "middle", style: { fontSize: "11px" } }, String(head)));
    }
    for (let row = 0; row < shapes.length; row += step(down, shapes.length))
      labels.append(svg("text", { class: "muted", x: this.left - 6, "text-anchor": "end",
                                  y: this.top + (row + 0.5) * this.cellHeight + 4,
                                  style: { fontSize: "11px" } }, String(shapes[row].layer)));
    labels.append(svg("text", { class: "muted", x: this.left, y: 11, style: { fontSize: "11px" } }, "head →   layer ↓"));
    this.writing = svg("g", { "aria-hidden": "true" });
    this.halo = svg("rect", { class: "cursor-halo", visibility: "hidden", rx: 3 });
    this.pinned = svg("rect", { class: "cursor pinned", visibility: "hidden", rx: 3 });
    this.cursor = svg("rect", { class: "cursor", visibility: "hidden", rx: 3 });
    redraw(this.node, labels, ...rows, this.writing, this.halo, this.pinned, this.cursor);
  }

  /* look(head) gives {fill, text, ink, label} of a cell. */
  paint(look) {
    this.look = look;
    this.view.model.heads.forEach((head) => {
      const { fill: color, text, ink } = look(head);
      this.cells[head.index].setAttribute("fill", color);
      this.write(head, text, ink);
    });
  }

  write(head, text, ink) {
    const size = 11, fits = text && this.cellHeight >= 14 && textWidth(text, size, 600) <= this.cellWidth - 4;
    let node = this.texts[head.index];
    if (!fits) {
      if (node) node.remove();
      this.texts[head.index] = null;
      return;
    }
    if (!node) {
      const { x, y } = this.place(head);
      node = svg("text", { class: "cell-text", x: x + this.cellWidth / 2, y: y + this.cellHeight / 2 + 4 });
      node.style.fontSize = size + "px";
      this.texts[head.index] = node;
      this.writing.append(node);
    }
    node.textContent = text;
    node.style.fill = ink;
  }

  frame(node, index, grow) {
    if (index === null) { node.setAttribute("visibility", "hidden"); return; }
    const { x, y } = this.place(this.view.model.heads[index]);
    fill(node, { x: x - grow, y: y - grow, width: this.cellWidth + 2 * grow,
                 height: this.cellHeight + 2 * grow, visibility: "visible" }, []);
  }

  show(hovered, pinned) {
    this.frame(this.cursor, hovered, 0);
    this.frame(this.pinned, pinned, 0.5);
    this.frame(this.halo, pinned, 0.5);
  }

  tipText(index) {
    const head = this.view.model.heads[index];
    return `Layer ${head.layer} · head ${head.head}\n${this.look(head).label}`;
  }

  point(event) {
    const index = this.indexOf(event.target);
    this.view.hoverHead(index);
    if (index === null) hideTip();
    else showTip(event, this.tipText(index));
  }

  pick(index) {
    if (index !== null) this.view.pickHead(index);
  }

  focusIn(event) {
    const index = this.indexOf(event.target);
    if (index === null) return;
    this.cells[this.focused].setAttribute("tabindex", -1);
    this.focused = index;
    const cell = this.cells[index], text = this.tipText(index);
    cell.setAttribute("tabindex", 0);
    cell.setAttribute("aria-label", text.replace("\n", ": "));
    this.view.hoverHead(index);
    if (!cell.matches(":focus-visible")) return;
    const at = cell.getBoundingClientRect();
    showTip({ clientX: at.right, clientY: at.bottom }, text);
  }

  key(event) {
    const { heads } = this.view.model, here = heads[this.focused];
    const vertical = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    let next = null;
    if (event.key === "Enter" || event.key === " ") this.pick(this.focused);
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight")
      next = heads[here.index + (event.key === "ArrowLeft" ? -1 : 1)];
    else if (vertical)
      next = heads.filter((head) => head.row === here.row + vertical)
        .sort((a, b) => Math.abs(a.head - here.head) - Math.abs(b.head - here.head))[0];
    else if (event.key === "Home") next = heads.find((head) => head.row === here.row);
    else if (event.key === "End") next = heads.filter((head) => head.row === here.row).pop();
    else return;
    event.preventDefault();
    if (next) this.cells[next.index].focus();
  }
}

/* Both maps side by side where the cells stay readable, one above the other where not. */
function layoutMaps(view) {
  const maps = document.getElementById("maps");
  const columns = Math.max(...view.model.report.recording.layers.map((shape) => shape.num_heads));
  const half = (maps.clientWidth - 16) / 2 - 34;
  maps.classList.toggle("pair", maps.clientWidth > 860 && half / columns >= 18);
  for (const map of [view.choiceMap, view.errorMap])
    map.layout(map.node.parentElement.clientWidth);
}

function paintChoiceMap(view) {
  const { choice } = view;
  view.choiceMap.paint((head) => {
    const config = choice.byHead[head.index];
    if (!config)
      return { fill: "url(#hatch-none)", text: "", label: "no config meets the budget" };
    return { fill: config.color, text: config.key, ink: inkOn(config.color),
             label: `${config.id}, ${bitsText(config.kv_bits)} bits\n` +
               `relative L2 ${numberText(config.errors[head.index])}, budget ${plainText(choice.budget)}` };
  });
  const items = view.model.configs.filter((config) => choice.counts[config.index])
    .map((config) => element("li", null, keyBadge(config), config.id));
  if (choice.unmet) items.push(element("li", null, unmetBadge(), "no config meets the budget"));
  document.getElementById("choice-legend").replaceChildren(...items);
}

/* The range of a metric over all configs, so that colours keep their meaning between them. */
function metricDomain(model, metric) {
  if (!model.domains.has(metric.key)) model.domains.set(metric.key, findDomain(model, metric));
  return model.domains.get(metric.key);
}

function findDomain(model, metric) {
  let low = Infinity, high = -Infinity;
  for (const config of model.configs)
    for (const scores of config.scores) {
      const { state, badness: value } = readFigure(scores, metric);
      if (state !== "finite" || (metric.log && !(value > 0))) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  if (low > high) return metric.log ? [1e-3, 1] : [0, 1];
  if (metric.log) return high / low > 1.2 ? [low, high] : [low / 1.5, high * 1.5];
  return high > low ? [low, high] : [low - 1, high + 1];
}

function metricPosition(figure, metric, [low, high]) {
  if (figure.state === "exact") return 0;
  if (!metric.log) return (figure.badness - low) / (high - low);
  return figure.badness > 0 ? Math.log(figure.badness / low) / Math.log(high / low) : 0;
}

function paintErrorMap(view) {
  const { model, state, choice } = view, metric = view.metrics.find((m) => m.key === state.metric);
  const domain = metricDomain(model, metric);
  const fixed = state.mapConfig >= 0 ? model.configs[state.mapConfig] : null;
  document.getElementById("error-caption").textContent =
    `${metric.title}: ${fixed ? fixed.id : "the config chosen for each head"}`;
  view.errorMap.paint((head) => {
    const config = fixed || choice.byHead[head.index];
    if (!config) return { fill: "url(#hatch-none)", text: "–", ink: "var(--ink)", label: "no config meets the budget" };
    const figure = readFigure(config.scores[head.index], metric);
    const lost = figure.count ? `, ${plural(figure.count, "element")} not finite` : "";
    const label = `${config.id}\n${metric.title}: ${figure.text}${lost}`;
    if (figure.state === "nonfinite" || figure.state === "infinite")
      return { fill: "url(#hatch-alarm)", text: "", label };
    if (figure.state === "none") return { fill: "url(#hatch-none)", text: "–", ink: "var(--ink)", label };
    const color = rampColor(metricPosition(figure, metric, domain));
    return { fill: color, text: cellText(figure, metric), ink: inkOn(color), label };
  });
  drawScale(view, metric, domain);
}

function cellText(figure, metric) {
  if (figure.state === "exact") return "=";
  if (metric.id === "cosine") return figure.value.toFixed(4).replace(/^0/, "");
  if (metric.id === "top_k_agreement") return (100 * figure.value).toFixed(0) + "%";
  if (metric.id === "sqnr_db") return figure.value.toFixed(0);
  const size = Math.abs(figure.value);
  if (size >= 1e-3 && size < 1) return figure.value.toFixed(size < 0.1 ? 4 : 3).replace(/^0/, "");
  return figure.value === 0 ? "0" : figure.value.toExponential(0);
}

/* The legend of the error map: best at the left, worst at the right. */
function drawScale(view, metric, domain) {
  const node = document.getElementById("scale"), width = Math.max(200, node.clientWidth);
  const left = 4, right = width - 4, parts = [], steps = 64;
  const position = (bad) => metric.log ? Math.log(bad / domain[0]) / Math.log(domain[1] / domain[0])
    : (bad - domain[0]) / (domain[1] - domain[0]);
  for (let i = 0; i < steps; i++)
    parts.push(svg("rect", { x: left + (right - left) * i / steps, y: 0, height: 12,
                             width: (right - left) / steps + 0.6, fill: rampColor((i + 0.5) / steps) }));
  const most = Math.floor(width / 74);
  const ticks = metric.log ? logTicks(...domain, most) : linearTicks(...domain, most);
  for (const tick of ticks) {
    const at = left + (right - left) * position(tick);
    const value = metric.fromOne ? 1 - tick : metric.higherIsBetter ? -tick : tick;
    const text = metric.fromOne ? String(Number(value.toFixed(Math.min(12, Math.ceil(-Math.log10(tick)) + 1))))
      : metric.id === "top_k_agreement" ? Number((100 * value).toFixed(2)) + "%" : plainText(value);
    const half = textWidth(text, 11) / 2, x = Math.min(Math.max(at, left + half), right - half);
    parts.push(svg("line", { class: "axis", x1: at, x2: at, y1: 12, y2: 16 }));
    parts.push(svg("text", { class: "muted", x, y: 28, "text-anchor": "middle", style: { fontSize: "11px" } }, text));
  }
  const budget = view.state.budget;
  if (metric.key === "total.rel_l2" && budget >= domain[0] && budget <= domain[1]) {
    const at = left + (right - left) * position(budget), text = `budget ${plainText(budget)}`;
    const half = textWidth(text, 11, 600) / 2;
    parts.push(svg("path", { d: `M${at} 12l-4 -5v-9h8v9z`, class: "curve-dot" }));
    parts.push(svg("text", { class: "budget-label", x: Math.min(Math.max(at, left + half), right - half), y: 42,
                             "text-anchor": "middle", style: { fontSize: "11px" } }, text));
  }
  node.setAttribute("viewBox", `0 0 ${width} 44`);
  document.getElementById("scale-title").textContent = `Colour scale of ${metric.title}, worse to the right`;
  redraw(node, ...parts);
}
