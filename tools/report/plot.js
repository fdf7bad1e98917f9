/*
 * Two drawings: accuracy against speed with its Pareto front, and mean bits against the budget.
 */

/* A config's place in the plot; dots without a finite error or speed go to a strip at the top. */
function plotPoints(model) {
  return model.configs.map((config) => {
    const summary = config.summary.total;
    const finite = [...config.errors].filter((error) => error >= 0);
    return {
      config,
      speed: config.timing.gops,
      error: summary.rel_l2,
      lost: config.errors.length - finite.length,
      best: finite.length ? Math.min(...finite) : null,
      worst: finite.length ? Math.max(...finite) : null,
    };
  });
}

function plotDomain(values, pad, narrowest) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return [1e-3, 1];
  let low = Math.min(...positive), high = Math.max(...positive);
  if (high / low < narrowest) {
    const widen = Math.sqrt(narrowest / (high / low));
    low /= widen;
    high *= widen;
  }
  return [low / pad, high * pad];
}

function drawPlot(view) {
  const { model, state } = view;
  const node = document.getElementById("plot");
  const width = Math.max(260, node.parentElement.clientWidth - 32), small = width < 560;
  const height = small ? 380 : 440;
  const points = plotPoints(model);
  const broken = points.some((p) => p.error === null || !(p.speed > 0));
  const box = { left: 44, right: width - 14, top: broken ? 66 : 26, bottom: height - 42 };
  const x = logScale(...plotDomain(points.map((p) => p.speed), 1.18, 2.5), box.left, box.right);
  const errors = points.flatMap((p) => [p.error, p.best, p.worst]).concat(state.budget);
  const y = logScale(...plotDomain(errors, 1.25, 4), box.bottom, box.top);
  for (const p of points) {
    p.x = p.speed > 0 ? x(p.speed) : box.left + 12;
    if (p.error === null || !(p.speed > 0)) p.y = box.top - 20;
    else p.y = p.error > 0 ? y(p.error) : box.bottom - 6;
  }
  node.setAttribute("viewBox", `0 0 ${width} ${height}`);
  node.setAttribute("height", height);
  document.getElementById("plot-title").textContent = `Relative L2 error against speed of ${
    plural(points.length, "config")
  }`;
  const dots = points.map((p) => markBox(p, p.y - 9, p.y + 9, 9));
  const ranges = points.filter((p) => p.best > 0).map((p) => markBox(p, y(p.worst), y(p.best), 4));
  const budget = placeBudget(state.budget, y(state.budget), box, [...dots, ...ranges]);
  const strip = broken ? placeStrip(box, dots) : { label: [], drawing: null };
  const obstacles = [...dots, budget.label].concat(strip.label);
  redraw(
    node,
    ...plotAxes(x, y, box, height),
    strip.drawing,
    budget.drawing,
    plotFront(points, box),
    ...plotDots(view, points, y, obstacles, ranges, box),
  );
}

function markBox(p, top, bottom, half) {
  return { left: p.x - half, right: p.x + half, top, bottom };
}

function plotAxes(x, y, box, height) {
  const parts = [];
  const wide = box.right - box.left;
  for (const tick of logTicks(x.invert(box.left), x.invert(box.right), Math.floor(wide / 85))) {
    const at = x(tick),
      text = { class: "muted", x: at, y: box.bottom + 17, "text-anchor": "middle" };
    parts.push(svg("line", { class: "gridline", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    parts.push(svg("text", text, plainText(tick)));
  }
  for (const tick of logTicks(y.invert(box.bottom), y.invert(box.top), 8)) {
    const at = y(tick), text = { class: "muted", x: box.left - 8, y: at + 4, "text-anchor": "end" };
    parts.push(svg("line", { class: "gridline", x1: box.left, x2: box.right, y1: at, y2: at }));
    parts.push(svg("text", text, plainText(tick)));
  }
  const { left: x1, right: x2, bottom } = box;
  parts.push(svg("line", { class: "axis", x1, x2, y1: bottom, y2: bottom }));
  parts.push(
    svg(
      "text",
      { class: "axis-title", x: box.right, y: height - 4, "text-anchor": "end" },
      "Speed, GOP/s: higher is faster",
    ),
  );
  parts.push(
    svg("text", { class: "axis-title", x: 0, y: 13 }, "Relative L2 error: lower is more accurate"),
  );
  return parts;
}

/* The leftmost place between y - 20 and y where a text of that width covers no mark. */
function freePlace(width, y, box, marks) {
  const at = (left) => ({ left: left - 4, right: left + width + 4, top: y - 20, bottom: y - 1 });
  for (let left = box.left + 6; left + width < box.right; left += 20) {
    if (!marks.some((mark) => overlap(mark, at(left)))) return at(left);
  }
  return at(box.left + 6);
}

/* Where configs stand that have no finite place on the axes. */
function placeStrip(box, marks) {
  const text = "not finite", width = box.right - box.left;
  const label = freePlace(textWidth(text, 12, 600), box.top - 11, box, marks);
  const drawing = svg(
    "g",
    null,
    svg("rect", { class: "strip", x: box.left, y: box.top - 36, width, height: 32, rx: 4 }),
    svg("text", { class: "strip-label", x: label.left + 4, y: box.top - 16 }, text),
  );
  return { label, drawing };
}

function placeBudget(budget, y, box, marks) {
  const text = `budget ${plainText(budget)}`;
  const label = freePlace(textWidth(text, 12, 600), y, box, marks);
  const drawing = svg(
    "g",
    { id: "plot-budget" },
    svg("line", { class: "budget-line", x1: box.left, x2: box.right, y1: y, y2: y }),
    svg("text", { class: "budget-label", x: label.left + 4, y: y - 6 }, text),
  );
  return { label, drawing };
}

/* The best error to be had at each speed: flat to each config of the front, then up to the next. */
function plotFront(points, box) {
  const front = points.filter((p) => p.config.onFront && p.error !== null && p.speed > 0)
    .sort((a, b) => a.x - b.x);
  if (!front.length) return null;
  let path = `M${box.left} ${front[0].y}H${front[0].x}`;
  for (const p of front.slice(1)) path += `V${p.y}H${p.x}`;
  return svg("path", { class: "front", d: path + `V${box.top}` });
}

function plotDots(view, points, y, obstacles, ranges, box) {
  const order = [...points].sort((a, b) => b.config.onFront - a.config.onFront || b.x - a.x);
  for (const p of order) {
    p.label = shorten(p.config.id, 34);
    p.width = textWidth(p.label, 12, p.config.onFront ? 650 : 400) + 6;
  }
  const frame = { left: box.left + 2, right: box.right, top: 4, bottom: box.bottom - 2 };
  const places = placeLabels(order, obstacles, ranges, frame);
  const leaders = [], labels = [];
  order.forEach((p, index) => {
    const place = places[index];
    if (!place) return;
    const at = place.box, middle = (at.top + at.bottom) / 2;
    if (place.leader) {
      leaders.push(
        svg("line", {
          class: "leader",
          x1: p.x,
          y1: p.y,
          x2: Math.min(Math.max(p.x, at.left), at.right),
          y2: middle,
        }),
      );
    }
    labels.push(
      svg("text", {
        class: "point-label" + (p.config.onFront ? " on-front" : ""),
        x: at.left + 3,
        y: middle + 4,
      }, p.label),
    );
  });
  return [...leaders, ...order.map((p) => plotDot(view, p, y)).reverse(), ...labels];
}

function plotDot(view, p, y) {
  const { config } = p, chosen = view.state.mapConfig === config.index;
  const error = readFigure(config.summary, METRIC_TOTAL);
  const name = `${config.id}: relative L2 ${error.text}, ${numberText(p.speed)} GOP/s, ` +
    `${bitsText(config.kv_bits)} bits, worst head ${p.lost ? "not finite" : numberText(p.worst)}` +
    (config.onFront ? ", on the Pareto front" : "");
  const pick = () => view.pickConfig(config.index);
  return svg(
    "g",
    {
      class: "point" + (chosen ? " chosen" : ""),
      tabindex: 0,
      role: "button",
      "aria-label": name,
      "aria-pressed": String(chosen),
      "data-config": config.index,
      onclick: pick,
      onkeydown: onActivate(pick),
      onpointermove: (event) => showTip(event, name.replace(": ", "\n").replaceAll(", ", "\n")),
      onpointerleave: hideTip,
    },
    p.best > 0
      ? svg("line", {
        class: "range",
        stroke: config.color,
        x1: p.x,
        x2: p.x,
        y1: y(p.best),
        y2: y(p.worst),
      })
      : null,
    svg("circle", { class: "hit", cx: p.x, cy: p.y, r: 14 }),
    svg("circle", { cx: p.x, cy: p.y, r: config.onFront ? 8 : 6.5, style: { fill: config.color } }),
    svg("circle", { class: "ring", cx: p.x, cy: p.y, r: 11 }),
  );
}

const METRIC_TOTAL = { ...ERROR_METRICS[0], part: "total" };

function onActivate(action) {
  return (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    action();
  };
}

/* Mean bits against the budget, on the slider's own axis, with the present budget marked. */
function drawCurve(view) {
  const { model, state, choice } = view;
  const node = document.getElementById("curve");
  const width = Math.max(220, node.clientWidth), height = 150;
  const inset = 9; // half a slider thumb: the axis lies over the slider's travel
  const [low, high] = view.domain;
  const x = logScale(low, high, inset, width - inset);
  if (!view.curve) {
    view.curve = [];
    for (let i = 0; i <= 160; i++) {
      const budget = low * (high / low) ** (i / 160);
      view.curve.push([budget, choose(model, budget).meanBits]);
    }
  }
  const most = Math.max(16, ...view.curve.map((point) => point[1]), choice.meanBits);
  const top = 22, bottom = height - 22;
  const y = (bits) => bottom - bits / most * (bottom - top);
  let path = "";
  view.curve.forEach(([budget, bits], index) => {
    path += index ? `H${x(budget)}V${y(bits)}` : `M${x(budget)} ${y(bits)}`;
  });
  const parts = [
    svg("line", { class: "gridline", x1: inset, x2: width - inset, y1: y(16), y2: y(16) }),
    svg("path", { class: "curve-area", d: `${path}V${bottom}H${inset}Z` }),
    svg("path", { class: "curve-line", d: path }),
    svg("line", { class: "axis", x1: inset, x2: width - inset, y1: bottom, y2: bottom }),
  ];
  for (const tick of logTicks(low, high, Math.floor(width / 58))) {
    parts.push(
      svg(
        "text",
        { class: "muted", x: x(tick), y: height - 6, "text-anchor": "middle" },
        plainText(tick),
      ),
    );
  }
  const at = Math.min(Math.max(x(state.budget), inset), width - inset), bits = choice.meanBits;
  const label = `${bits.toFixed(1)} bits`, room = textWidth(label, 13, 650) + 12;
  const right = at + room < width - inset;
  // The name of the 16-bit line goes below it where the present value stands beside it.
  const crowded = Math.abs(y(bits) - y(16)) < 16 && at + room > width - inset - 100;
  parts.push(
    svg("text", {
      class: "muted",
      x: width - inset,
      y: y(16) + (crowded ? 15 : -5),
      "text-anchor": "end",
    }, "16 bits: bf16"),
  );
  parts.push(svg("line", { class: "curve-cursor", x1: at, x2: at, y1: top - 8, y2: bottom }));
  parts.push(svg("circle", { class: "curve-dot", cx: at, cy: y(bits), r: 5 }));
  parts.push(
    svg("text", {
      class: "curve-value",
      x: at + (right ? 9 : -9),
      y: y(bits) - 8,
      "text-anchor": right ? "start" : "end",
    }, label),
  );
  node.setAttribute("viewBox", `0 0 ${width} ${height}`);
  document.getElementById("curve-title").textContent =
    `Mean bits per K/V element against the budget: ${bits.toFixed(1)} at ${
      plainText(state.budget)
    }`;
  redraw(node, ...parts);
}
