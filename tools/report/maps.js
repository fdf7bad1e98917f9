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
    node.addEventListener("pointerleave", () => {
      hideTip();
      view.hoverHead(null);
    });
    node.addEventListener("click", (event) => this.pick(this.indexOf(event.target)));
    node.addEventListener("keydown", (event) => this.key(event));
    node.addEventListener("focusin", (event) => this.focusIn(event));
    node.addEventListener("focusout", () => {
      hideTip();
      view.hoverHead(null);
    });
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
      const cell = svg("rect", {
        class: "cell",
        role: "gridcell",
        tabindex: head.index === this.focused ? 0 : -1,
        "data-index": head.index,
        x: x + inset,
        y: y + inset,
        width: this.cellWidth - 2 * inset,
        height: this.cellHeight - 2 * inset,
        rx: inset * 2,
      });
      rows[head.row].append(cell);
      this.cells.push(cell);
      this.texts.push(null);
    }
    const across = Math.ceil(24 / this.cellWidth), down = Math.ceil(14 / this.cellHeight);
    const step = (least, count) => [1, 2, 4, 5, 8, 10, 16, 20, 32].find((n) => n >= least) || count;
    for (let head = 0; head < columns; head += step(across, columns)) {
      const { x } = this.place({ head, row: 0 });
      labels.append(smallText(x + this.cellWidth / 2, this.top - 6, "middle", String(head)));
    }
    for (let row = 0; row < shapes.length; row += step(down, shapes.length)) {
      labels.append(
        smallText(
          this.left - 6,
          this.top + (row + 0.5) * this.cellHeight + 4,
          "end",
          String(shapes[row].layer),
        ),
      );
    }
    labels.append(smallText(this.left, 11, "start", "head →   layer ↓"));
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
    const size = 11, room = this.cellWidth - 4;
    const fits = text && this.cellHeight >= 14 && textWidth(text, size, 600) <= room;
    let node = this.texts[head.index];
    if (!fits) {
      if (node) node.remove();
      this.texts[head.index] = null;
      return;
    }
    if (!node) {
      const { x, y } = this.place(head);
      const middle = { x: x + this.cellWidth / 2, y: y + this.cellHeight / 2 + 4 };
      node = svg("text", { class: "cell-text", ...middle, style: { fontSize: size + "px" } });
      this.texts[head.index] = node;
      this.writing.append(node);
    }
    node.textContent = text;
    node.style.fill = ink;
  }

  frame(node, index, grow) {
    if (index === null) {
      node.setAttribute("visibility", "hidden");
      return;
    }
    const { x, y } = this.place(this.view.model.heads[index]);
    fill(node, {
      x: x - grow,
      y: y - grow,
      width: this.cellWidth + 2 * grow,
      height: this.cellHeight + 2 * grow,
      visibility: "visible",
    }, []);
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
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      next = heads[here.index + (event.key === "ArrowLeft" ? -1 : 1)];
    } else if (vertical) {
      next = heads.filter((head) => head.row === here.row + vertical)
        .sort((a, b) => Math.abs(a.head - here.head) - Math.abs(b.head - here.head))[0];
    } else if (event.key === "Home") next = heads.find((head) => head.row === here.row);
    else if (event.key === "End") next = heads.filter((head) => head.row === here.row).pop();
    else return;
    event.preventDefault();
    if (next) this.cells[next.index].focus();
  }
}

function smallText(x, y, anchor, text, kind = "muted") {
  const style = { fontSize: "11px" };
  return svg("text", { class: kind, x, y, "text-anchor": anchor, style }, text);
}

/* Both maps side by side where the cells stay readable, one above the other where not. */
function layoutMaps(view) {
  const maps = document.getElementById("maps");
  const columns = Math.max(...view.model.report.recording.layers.map((shape) => shape.num_heads));
  const half = (maps.clientWidth - 16) / 2 - 34;
  maps.classList.toggle("pair", maps.clientWidth > 860 && half / columns >= 18);
  for (const map of [view.choiceMap, view.errorMap]) {
    map.layout(map.node.parentElement.clientWidth);
  }
}

const EMPTY_CELL = { fill: "url(#hatch-none)", text: "–", ink: "var(--ink)" };

function paintChoiceMap(view) {
  const { choice } = view;
  view.choiceMap.paint((head) => {
    const config = choice.byHead[head.index];
    if (!config) return { ...EMPTY_CELL, text: "", label: "no config meets the budget" };
    const label = `${config.id}, ${bitsText(config.kv_bits)} bits\n` +
      `relative L2 ${numberText(config.errors[head.index])}, budget ${plainText(choice.budget)}`;
    return { fill: config.color, text: config.key, ink: inkOn(config.color), label };
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
  for (const config of model.configs) {
    for (const scores of config.scores) {
      const { state, badness: value } = readFigure(scores, metric);
      if (state !== "finite" || (metric.log && !(value > 0))) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
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
  document.getElementById("error-caption").textContent = `${metric.title}: ${
    fixed ? fixed.id : "the config chosen for each head"
  }`;
  view.errorMap.paint((head) => {
    const config = fixed || choice.byHead[head.index];
    if (!config) return { ...EMPTY_CELL, label: "no config meets the budget" };
    const figure = readFigure(config.scores[head.index], metric);
    const lost = figure.count ? `, ${plural(figure.count, "element")} not finite` : "";
    const label = `${config.id}\n${metric.title}: ${figure.text}${lost}`;
    if (figure.state === "nonfinite" || figure.state === "infinite") {
      return { fill: "url(#hatch-alarm)", text: "", label };
    }
    if (figure.state === "none") return { ...EMPTY_CELL, label };
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

/* The text of a tick of the scale: the metric's own figure, whatever its colour counts. */
function tickText(tick, metric) {
  if (metric.fromOne) {
    const digits = Math.min(12, Math.ceil(-Math.log10(tick)) + 1);
    return String(Number((1 - tick).toFixed(digits)));
  }
  if (metric.id === "top_k_agreement") return Number((-100 * tick).toFixed(2)) + "%";
  return plainText(metric.higherIsBetter ? -tick : tick);
}

/* The legend of the error map: best at the left, worst at the right. */
function drawScale(view, metric, [low, high]) {
  const node = document.getElementById("scale"), width = Math.max(200, node.clientWidth);
  const left = 4, right = width - 4, steps = 64, step = (right - left) / steps, parts = [];
  const position = metric.log
    ? logScale(low, high, left, right)
    : (value) => left + (right - left) * (value - low) / (high - low);
  const write = (at, y, text, kind) => {
    const half = textWidth(text, 11, 600) / 2;
    parts.push(
      smallText(Math.min(Math.max(at, left + half), right - half), y, "middle", text, kind),
    );
  };
  for (let i = 0; i < steps; i++) {
    const fill = rampColor((i + 0.5) / steps);
    parts.push(svg("rect", { x: left + i * step, y: 0, width: step + 0.6, height: 12, fill }));
  }
  const most = Math.floor(width / 74);
  for (const tick of metric.log ? logTicks(low, high, most) : linearTicks(low, high, most)) {
    const at = position(tick);
    parts.push(svg("line", { class: "axis", x1: at, x2: at, y1: 12, y2: 16 }));
    write(at, 28, tickText(tick, metric));
  }
  const { budget } = view.state;
  if (metric.key === "total.rel_l2" && budget >= low && budget <= high) {
    const at = position(budget);
    parts.push(svg("path", { class: "curve-dot", d: `M${at} 12l-4 -5v-9h8v9z` }));
    write(at, 42, `budget ${plainText(budget)}`, "budget-label");
  }
  node.setAttribute("viewBox", `0 0 ${width} 44`);
  document.getElementById("scale-title").textContent =
    `Colour scale of ${metric.title}, worse to the right`;
  redraw(node, ...parts);
}
