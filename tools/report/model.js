/*
 * The report as the page uses it: heads in one flat order, configs with their total errors beside
 * them, the choice of a config for every head at any budget, and figures as text.
 */

function readReport() {
  let report;
  try {
    report = JSON.parse(document.getElementById("report-data").textContent);
  } catch (error) {
    throw new Error("This page's data is not valid JSON: " + error.message);
  }
  if (!report || report.schema !== "headroom-report" || report.schema_version !== 1) {
    throw new Error("This page draws headroom-report version 1; its data is something else.");
  }
  return report;
}

/*
 * heads[h]: {index, layer, head, row, kv}; row counts the audited layers and kv all KV heads, both
 * from 0. kvHeads[kv]: {layer, head, weight, heads}.
 */
function listHeads(report) {
  const heads = [], kvHeads = [];
  report.recording.layers.forEach((shape, row) => {
    const firstKv = kvHeads.length;
    for (let head = 0; head < shape.num_kv_heads; head++) {
      kvHeads.push({ layer: shape.layer, head, weight: shape.head_dim, heads: [] });
    }
    const group = shape.num_heads / shape.num_kv_heads;
    for (let head = 0; head < shape.num_heads; head++) {
      const kv = firstKv + Math.floor(head / group);
      kvHeads[kv].heads.push(heads.length);
      heads.push({
        index: heads.length,
        layer: shape.layer,
        head,
        row,
        kv,
        recordedBits: shape.dtype === "f32" ? 32 : 16,
      });
    }
  });
  return { heads, kvHeads };
}

/* Keys A, B, ..., Z, then 27, 28, ...: what a heatmap cell has room for. */
function keyOf(index) {
  return index < 26 ? String.fromCharCode(65 + index) : String(index + 1);
}

function buildModel(report) {
  const { heads, kvHeads } = listHeads(report);
  const front = new Set(report.pareto);
  const configs = report.configs.map((config, index) => {
    const scores = config.layers.flatMap((layer) => layer.heads.map((head) => head.scores));
    if (scores.length !== heads.length) {
      throw new Error(`${config.id} has ${scores.length} heads, the recording ${heads.length}.`);
    }
    const errors = Float64Array.from(scores, (s) => s.total.rel_l2 === null ? NaN : s.total.rel_l2);
    return { ...config, index, key: keyOf(index), scores, errors, onFront: front.has(config.id) };
  });
  const ranked = [...configs].sort((a, b) =>
    a.kv_bits - b.kv_bits || a.index - b.index
  );
  paintConfigs(configs);
  return { report, heads, kvHeads, configs, ranked, domains: new Map() };
}

/*
 * The config each head can live with: fewest bits first, then least error, then first in the report. A
 * comparison with NaN is false, so a head without a finite error never meets a budget.
 */
function chooseForHead(model, budget, index) {
  let chosen = null;
  for (const config of model.ranked) {
    if (!(config.errors[index] <= budget)) continue;
    if (!chosen) chosen = config;
    if (config.kv_bits > chosen.kv_bits) break;
    if (config.errors[index] < chosen.errors[index]) chosen = config;
  }
  return chosen;
}

function choose(model, budget) {
  const byHead = model.heads.map((head) => chooseForHead(model, budget, head.index));
  const counts = model.configs.map(() => 0);
  let unmet = 0, worst = 0;
  byHead.forEach((config, index) => {
    if (!config) {
      unmet++;
      return;
    }
    counts[config.index]++;
    worst = Math.max(worst, config.errors[index]);
  });
  return { budget, byHead, counts, unmet, worst, meanBits: meanBits(model, byHead) };
}

/* The row for which `of` is least, the first of equals; null of none. */
function least(rows, of) {
  return rows.reduce((best, row) => best && of(best) <= of(row) ? best : row, null);
}

/*
 * One config for all heads: `chosen`, of the fewest bits (then the smallest worst error) among those
 * that meet the budget on every head, null when none does; and `close`, of those with fewer bits the
 * one that breaks the fewest heads. Both are {config, worst, broken}: broken heads are listed worst
 * first, those without a finite error before all.
 */
function chooseUniform(model, budget) {
  const rows = model.ranked.map((config) => {
    const size = (head) => config.errors[head.index] >= 0 ? config.errors[head.index] : Infinity;
    const broken = model.heads.filter((head) => !(config.errors[head.index] <= budget));
    broken.sort((a, b) => size(a) === size(b) ? a.index - b.index : size(b) - size(a));
    return { config, worst: config.errors.reduce((a, b) => Math.max(a, b), 0), broken };
  });
  const whole = rows.filter((row) => row.broken.length === 0);
  const bits = whole.length ? whole[0].config.kv_bits : Infinity;
  const chosen = least(whole.filter((row) => row.config.kv_bits === bits), (row) => row.worst);
  const close = least(rows.filter((row) => row.config.kv_bits < bits), (row) => row.broken.length);
  return { chosen, close };
}

/* A KV head is stored once, so it takes the widest choice of the query heads that read it. */
function meanBits(model, byHead) {
  let sum = 0, weights = 0;
  for (const kv of model.kvHeads) {
    let bits = 0;
    for (const index of kv.heads) {
      const config = byHead[index];
      bits = Math.max(bits, config ? config.kv_bits : model.heads[index].recordedBits);
    }
    sum += kv.weight * bits;
    weights += kv.weight;
  }
  return sum / weights;
}

/* Ends of the budget slider: all errors of all heads, widened to 1, 2 or 5 times a power of ten. */
function budgetDomain(model) {
  let low = Infinity, high = 0;
  for (const config of model.configs) {
    for (const error of config.errors) {
      if (error > 0) {
        low = Math.min(low, error);
        high = Math.max(high, error);
      }
    }
  }
  const given = model.report.choice.budget;
  low = niceDown(Math.min(low, given));
  high = niceUp(Math.max(high, given));
  return high / low >= 10 ? [low, high] : [low / 4, high * 4];
}

/* The metrics a head is scored by: those of an error object, then those of the softmax. */
const ERROR_METRICS = [
  { id: "rel_l2", name: "relative L2", log: true },
  { id: "rel_l1", name: "relative L1", log: true },
  { id: "rmse", name: "RMSE", log: true },
  { id: "max_abs", name: "max abs", log: true },
  { id: "cosine", name: "cosine", log: true, higherIsBetter: true, fromOne: true },
  { id: "sqnr_db", name: "SQNR, dB", higherIsBetter: true },
];
const ERROR_PARTS = [
  { id: "total", name: "Total" },
  { id: "quant", name: "Quantization" },
  { id: "kernel", name: "Kernel" },
  { id: "lse", name: "LSE" },
];

function listMetrics(topK) {
  const metrics = ERROR_PARTS.flatMap((part) =>
    ERROR_METRICS.map((metric) => ({
      ...metric,
      part: part.id,
      key: part.id + "." + metric.id,
      group: part.name + " error",
      title: `${part.name} error, ${metric.name}`,
    }))
  );
  metrics.push({
    key: "softmax_kl",
    id: "softmax_kl",
    group: "Softmax",
    name: "KL divergence, nats",
    title: "Softmax KL divergence, nats",
    log: true,
  });
  metrics.push({
    key: "top_k_agreement",
    id: "top_k_agreement",
    group: "Softmax",
    name: `top-${topK} agreement`,
    title: `Softmax top-${topK} agreement`,
    higherIsBetter: true,
  });
  return metrics;
}

/*
 * One figure of a scores object: {value, text, state}. state is "finite", "nonfinite" (NaN or
 * infinity was in the output: shown loudly), "exact" (no error at all), "infinite" (a zero
 * reference) or "none". badness grows with the error: what colours stand for.
 */
function readFigure(scores, metric) {
  const error = metric.part ? scores[metric.part] : null;
  const value = error ? error[metric.id] : scores[metric.id];
  if (error && error.nonfinite > 0) {
    return { value: null, state: "nonfinite", text: "NaN/Inf", count: error.nonfinite };
  }
  if (value !== null) {
    const text = figureText(value, metric.id);
    return { value, state: "finite", text, badness: badness(value, metric) };
  }
  if (!error && scores.total.nonfinite > 0) return { value, state: "nonfinite", text: "NaN/Inf" };
  if (metric.id === "sqnr_db" && error.rel_l2 === 0) return { value, state: "exact", text: "exact" };
  if (metric.id.startsWith("rel_")) return { value, state: "infinite", text: "∞" };
  return { value, state: "none", text: "–" };
}

function badness(value, metric) {
  if (metric.fromOne) return Math.max(0, 1 - value);
  return metric.higherIsBetter ? -value : value;
}

function figureText(value, id) {
  if (id === "cosine") return value > 0.9995 ? value.toFixed(6) : value.toFixed(4);
  if (id === "sqnr_db") return value.toFixed(1);
  if (id === "top_k_agreement") return (100 * value).toFixed(1) + "%";
  return numberText(value);
}

/* Three significant digits; powers of ten where zeros would have to be counted. */
function numberText(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e5) return value.toExponential(1).replace("e+", "e");
  if (size >= 100) return value.toFixed(0);
  return value.toPrecision(3);
}

/* The shortest form: 0.05, 9, 8.07. */
function plainText(value) {
  const small = Math.abs(value) < 1e-3 && value !== 0;
  return String(Number(small ? value.toExponential(2) : value.toPrecision(3)));
}

function bitsText(value) {
  return String(Number(value.toFixed(2)));
}

function bytesText(bytes) {
  if (bytes < 1024) return bytes + " B";
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let unit = -1;
  do {
    bytes /= 1024;
    unit++;
  } while (bytes >= 1024 && unit < units.length - 1);
  return (bytes >= 100 ? bytes.toFixed(0) : bytes.toPrecision(3)) + " " + units[unit];
}

function plural(count, noun, many = noun + "s") {
  return `${count} ${count === 1 ? noun : many}`;
}
