/* Elements, colours, logarithmic scales and the placing of labels. */

const SVG_NAMESPACE = document.getElementById("definitions").namespaceURI;
const measuring = document.createElement("canvas").getContext("2d");

function element(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG_NAMESPACE, name), attributes, children);
}

/* Text goes in as text nodes only: nothing in a report can become markup. */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/* Replaces what is drawn but keeps the <title>, which names the drawing for screen readers. */
function redraw(node, ...children) {
  const title = node.querySelector(":scope > title");
  node.replaceChildren(...(title ? [title] : []), ...children);
}

const fontFamily = getComputedStyle(document.body).fontFamily;

function textWidth(text, size = 12, weight = 400) {
  measuring.font = `${weight} ${size}px ${fontFamily}`;
  return measuring.measureText(text).width;
}

function shorten(text, length) {
  return text.length <= length ? text : text.slice(0, length - 1) + "…";
}

/*
 * Configs of one preset share a hue (the colour-blind safe set of Okabe and Ito 2008), its
 * variants step in lightness; the baseline is grey. Keys and labels say the same without colour.
 */
const HUES = ["#0072b2", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#56b4e9", "#b8a800"];
const BASELINE = "#7d8793";
const VARIANTS = [0, 0.32, 0.56, -0.3, 0.72, -0.5];

function paintConfigs(configs) {
  const families = new Map();
  for (const config of configs) {
    const family = config.recipe.split(":")[0];
    if (!families.has(family)) families.set(family, []);
    families.get(family).push(config);
  }
  let hue = 0;
  for (const [family, members] of families) {
    const base = family === "bf16" ? BASELINE : HUES[hue++ % HUES.length];
    members.forEach((config, index) => {
      const mix = VARIANTS[index % VARIANTS.length];
      config.color = mix >= 0 ? mixColors(base, "#ffffff", mix) : mixColors(base, "#000000", -mix);
    });
  }
}

function parseColor(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function mixColors(a, b, amount) {
  const from = parseColor(a), to = parseColor(b);
  const mixed = from.map((x, i) => Math.round(x + (to[i] - x) * amount));
  return "#" + mixed.map((x) => x.toString(16).padStart(2, "0")).join("");
}

/* Black or white, whichever stands out more (WCAG relative luminance). */
function inkOn(hex) {
  const [r, g, b] = parseColor(hex).map((x) =>
    x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4
  );
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#101317" : "#ffffff";
}

/* Sequential ramps, steady in lightness; a small error stays near the background of its theme. */
const RAMPS = {
  light: ["#fff8e1", "#fee3a8", "#fcc17c", "#f58d61", "#dc5d5e", "#b3366c", "#7b2070", "#431357"],
  dark: ["#221a35", "#41205c", "#6b2470", "#982e6d", "#c4435f", "#e56a4a", "#f69f45", "#fbdc78"],
};

function isDark() {
  return document.documentElement.dataset.theme === "dark";
}

/* t in 0..1 */
function rampColor(t) {
  const stops = RAMPS[isDark() ? "dark" : "light"];
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(at), stops.length - 2);
  return mixColors(stops[index], stops[index + 1], at - index);
}

function keyBadge(config) {
  const style = { background: config.color, color: inkOn(config.color) };
  return element("span", { class: "key", "aria-hidden": "true", style }, config.key);
}

function unmetBadge() {
  return element("span", { class: "key unmet", "aria-hidden": "true" });
}

/* Largest 1, 2 or 5 times a power of ten that is not above x, and smallest not below. */
function niceDown(x) {
  const power = 10 ** Math.floor(Math.log10(x) + 1e-9);
  return Number(((x >= 5 * power ? 5 : x >= 2 * power ? 2 : 1) * power).toPrecision(12));
}

function niceUp(x) {
  const down = niceDown(x);
  if (down >= x * (1 - 1e-9)) return down;
  const power = 10 ** Math.floor(Math.log10(down) + 1e-9);
  const lead = Math.round(down / power);
  return Number(((lead === 1 ? 2 : lead === 2 ? 5 : 10) * power).toPrecision(12));
}

/* A logarithmic scale from [low, high] to the pixels [from, to]. */
function logScale(low, high, from, to) {
  const a = Math.log10(low), b = Math.log10(high);
  const scale = (x) => from + (Math.log10(x) - a) / (b - a) * (to - from);
  scale.invert = (pixel) => 10 ** (a + (pixel - from) / (to - from) * (b - a));
  return scale;
}

/* Round values in [low, high], about `most` of them at best. */
function logTicks(low, high, most) {
  for (const leads of [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const lead of leads) {
        const tick = Number((lead * 10 ** power).toPrecision(12));
        if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push(tick);
      }
    }
    if (ticks.length <= most || leads.length === 1) {
      const step = Math.ceil(ticks.length / most) || 1;
      return ticks.filter((_, index) => index % step === 0);
    }
  }
  return [];
}

function linearTicks(low, high, most) {
  if (!(high > low)) return [low];
  let step = niceDown((high - low) / most) || 1;
  while ((high - low) / step > most) step = niceUp(step * 1.01);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return ticks;
}

function overlap(a, b) {
  const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  return width > 0 && height > 0 ? width * height : 0;
}

/* Text that may break after its separators. */
function breakable(text) {
  const parts = text.split(/(?<=[:,/=])/);
  return parts.flatMap((part, index) => index ? [element("wbr"), part] : [part]);
}

function contains(outer, inner) {
  return inner.left >= outer.left && inner.right <= outer.right &&
    inner.top >= outer.top && inner.bottom <= outer.bottom;
}

/* Whether the line from (x, y) to the nearest side of `box` runs through one of `labels`. */
function leaderBlocked({ x, y }, box, labels) {
  const endX = Math.min(Math.max(x, box.left), box.right), endY = (box.top + box.bottom) / 2;
  const within = (b, px, py) => px > b.left && px < b.right && py > b.top && py < b.bottom;
  for (let t = 0.05; t < 1; t += 0.05) {
    if (labels.some((b) => within(b, x + t * (endX - x), y + t * (endY - y)))) return true;
  }
  return false;
}

/*
 * Puts labels beside their points without overlaps. points: {x, y, width}, most important first;
 * obstacles: boxes to stay off, faint ones only if there is room. Each label takes the nearest free
 * place around its point, if it can one whose leader crosses no other label; one that finds none
 * gets null. Returns {box, leader} for each point, leader true when it is far off.
 */
function placeLabels(points, obstacles, faint, frame) {
  const labels = [];
  return points.map((point) => {
    const taken = [...obstacles, ...labels];
    const free = labelPlaces(point).filter(({ box }) =>
      contains(frame, box) && !taken.some((other) => overlap(box, other))
    );
    const open = free.filter(({ box }) => !faint.some((other) => overlap(box, other)));
    const clear = open.find((place) => !place.leader || !leaderBlocked(point, place.box, labels));
    const place = clear || open[0] || free[0] || null;
    if (place) labels.push(place.box);
    return place;
  });
}

/* Where a label may go, best first: right, left, aslant, above, below, and so on farther away. */
function labelPlaces({ x, y, width }) {
  const places = [], height = 16;
  const directions = [[1, 0], [-1, 0], [1, -1], [1, 1], [-1, -1], [-1, 1], [0, -1], [0, 1]];
  for (let gap = 12; gap <= 132; gap += 8) {
    for (const [dx, dy] of directions) {
      const reach = dx && dy ? gap * 0.8 : gap;
      const left = dx > 0 ? x + reach : dx < 0 ? x - reach - width : x - width / 2;
      const top = y + dy * (dx ? reach : reach + 6) - height / 2;
      const box = { left, right: left + width, top, bottom: top + height };
      places.push({ box, leader: gap > 20 });
    }
  }
  return places;
}
