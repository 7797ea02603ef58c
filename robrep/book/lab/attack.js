// What an attack makes large, and projected gradient ascent (Madry et al. 2018), as in robrep.attacks.PGD.

function unit(vector) {
  const length = Math.max(Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0)), 1e-8);
  return { length, direction: Float64Array.from(vector, (value) => value / length) };
}

// Scores of the code q of x' against the code p of x, and their gradients with respect to q. A code that is a point
// counts as a Gaussian of scale 1, so that its KL divergence is half the squared distance.
//   each: (p, q) -> { score, mean, scale }; p and q are { mean, scale } as Network.encode gives them.
export const DIVERGENCES = {
  // KL[p || q] summed over dimensions, in nats; terms in r - 1, r = s / s', so that nothing is lost near q = p
  kl(p, q) {
    const D = q.mean.length, mean = new Float32Array(D), scale = q.scale && new Float32Array(D);
    let score = 0;
    for (let k = 0; k < D; k++) {
      const s = q.scale ? q.scale[k] : 1, away = q.scale ? (p.scale[k] - s) / s : 0, m = (p.mean[k] - q.mean[k]) / s;
      score += 0.5 * (away * (away + 2) + m * m) - Math.log1p(away);
      mean[k] = -m / s;
      if (scale) scale[k] = -(away * (away + 2) + m * m) / s;
    }
    return { score, mean, scale };
  },

  // the squared 2-Wasserstein distance: that of the means plus that of the scales
  wasserstein(p, q) {
    const D = q.mean.length, mean = new Float32Array(D), scale = q.scale && new Float32Array(D);
    let score = 0;
    for (let k = 0; k < D; k++) {
      mean[k] = 2 * (q.mean[k] - p.mean[k]);
      score += (q.mean[k] - p.mean[k]) ** 2;
      if (scale) {
        scale[k] = 2 * (q.scale[k] - p.scale[k]);
        score += (q.scale[k] - p.scale[k]) ** 2;
      }
    }
    return { score, mean, scale };
  },

  // 2 - 2 cos of the means, as the squared distance of the two directions: exactly 0, with no gradient, at q = p
  cosine(p, q) {
    const { direction: u } = unit(p.mean), { direction: v, length } = unit(q.mean);
    let score = 0, along = 0;
    for (let k = 0; k < v.length; k++) {
      score += (v[k] - u[k]) ** 2;
      along += (v[k] - u[k]) * v[k];
    }
    const mean = Float32Array.from(v, (value, k) => (2 * (value - u[k] - along * value)) / length);
    return { score, mean, scale: null };
  },
};

// Score and gradient at x' of one objective.
//   objective: "loss" (cross-entropy of the label) or a name of DIVERGENCES.
//   given: { label, clean }: the label, and the code of x.
//   noise: for Network.classify; looked at by "loss" alone.
//   returns { score, gradient, code }; gradient is valid until the network's next call.
export function ascent(network, objective, x, { label, clean }, noise) {
  const code = network.encode(x);
  if (objective === "loss") {
    const { log, back } = network.classify(code, noise), d = new Float64Array(log.length);
    d[label] = -1;
    const { mean, scale } = back(d);
    return { score: -log[label], gradient: network.backward(mean, scale), code };
  }
  const { score, mean, scale } = DIVERGENCES[objective](clean, code);
  return { score, gradient: network.backward(mean, scale), code };
}

const clip = (v) => Math.min(1, Math.max(0, v));
const norm = (v) => Math.sqrt(v.reduce((sum, value) => sum + value * value, 0));

// The balls: how far x' is, the steepest direction of length 1, and the way back into the ball around x within [0, 1].
export const NORMS = {
  linf: {
    distance: (a, b) => a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0),
    direction: (gradient) => gradient.map(Math.sign),
    project(x, start, eps) {
      return x.map((v, i) => clip(Math.min(start[i] + eps, Math.max(start[i] - eps, v))));
    },
    random(x, eps, random) {
      return x.map((v) => clip(v + eps * (2 * random.uniform() - 1)));
    },
  },
  l2: {
    distance: (a, b) => norm(a.map((v, i) => v - b[i])),
    direction(gradient) {
      const peak = gradient.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-38); // squares of tiny numbers are lost
      const unit = gradient.map((v) => v / peak), length = Math.max(norm(unit), 1e-30);
      return unit.map((v) => v / length);
    },
    project(x, start, eps) {
      const shrink = Math.min(1, eps / Math.max(norm(x.map((v, i) => v - start[i])), 1e-30));
      return x.map((v, i) => clip(start[i] + shrink * (v - start[i])));
    },
    random(x, eps, random) { // uniform in the ball: its radius is u^(1/d)
      const direction = x.map(() => random.normal()), length = random.uniform() ** (1 / x.length) / norm(direction);
      return x.map((v, i) => clip(v + eps * length * direction[i]));
    },
  },
};

// Projected gradient ascent, one iterate at a time.
//   x: Float32Array, the image; start: Float32Array, where to begin.
//   settings: { objective, norm, eps, steps, stepSize }; stepSize defaults to 2.5 eps / steps.
//   noiseAt: step -> Float32Array, fresh noise for a network that samples.
//   yields { x, score, code } for the start and after every step: steps + 1 times.
export function* climb(network, x, start, { objective, norm: name, eps, steps, stepSize }, label, noiseAt) {
  const ball = NORMS[name], given = { label, clean: network.encode(x) }, length = stepSize ?? (2.5 * eps) / steps;
  let current = ball.project(start, x, eps);
  for (let step = 0; step <= steps; step++) {
    const { score, gradient, code } = ascent(network, objective, current, given, noiseAt(step));
    const direction = ball.direction(gradient), next = current.map((v, i) => v + length * direction[i]);
    yield { x: current, score, code };
    current = ball.project(next, x, eps);
  }
}

// Random numbers from a seed: mulberry32, and Box and Muller's normal numbers.
export class Random {
  constructor(seed) {
    this.state = (seed * 0x9e3779b1) >>> 0;
    this.spare = null;
  }

  uniform() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  normal() {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform())), angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  normals(count) {
    return Float32Array.from({ length: count }, () => this.normal());
  }
}
