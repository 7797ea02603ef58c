// A recorded network: an encoder to a code, which may be a Gaussian, and a classifier on the code.

import { chain } from "./layers.js";
import { parse } from "./safetensors.js";

const softplus = (x) => (x > 20 ? x : Math.log1p(Math.exp(x)));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// How the second half of the last layer's output becomes a scale: [scale(raw), d scale / d raw].
const SCALES = {
  softplus: ({ min }) => [(raw) => softplus(raw) + min, sigmoid],
  logVariance: ({ limit }) => [
    (raw) => Math.exp(0.5 * Math.min(limit, Math.max(-limit, raw))),
    (raw) => (Math.abs(raw) > limit ? 0 : 0.5 * Math.exp(0.5 * raw)),
  ],
};

export class Network {
  // bytes: Uint8Array, a file of robrep/book/lab/export.py. Throws Error: damaged, or with layers that are not known.
  constructor(bytes) {
    const { tensors, metadata } = parse(bytes);
    if (!metadata.model) throw new Error("the file does not describe a network");
    const about = JSON.parse(metadata.model);
    this.about = about;
    this.tensors = tensors;
    this.encoder = chain(about.encoder, tensors, about.shape);
    const outputs = this.encoder.shape.reduce((product, n) => product * n, 1);
    this.dim = about.gaussian ? outputs / 2 : outputs;
    if (about.gaussian && !Object.hasOwn(SCALES, about.gaussian.scale)) {
      throw new Error(`the lab does not know the scale "${about.gaussian.scale}"`);
    }
    this.scale = about.gaussian ? SCALES[about.gaussian.scale](about.gaussian) : null;
    this.heads = new Map(); // by the number of codes that are classified together
    this.head(1);
  }

  // The classifier for so many codes at once, [rows, dim] to [rows, classes].
  head(rows) {
    if (!this.heads.has(rows)) this.heads.set(rows, chain(this.about.head, this.tensors, [rows, this.dim]));
    return this.heads.get(rows);
  }

  // The code of an image: { mean, scale }, Float32Arrays of length dim; scale is null where the code is a point.
  //   x: Float32Array of about.shape, in [0, 1].
  encode(x) {
    const out = this.encoder.forward(x);
    if (!this.scale) return { mean: out.slice(), scale: null };
    this.raw = out.slice(this.dim);
    return { mean: out.slice(0, this.dim), scale: this.raw.map(this.scale[0]) };
  }

  // The gradient with respect to the image last encoded, from those with respect to its code's mean and scale.
  //   returns Float32Array, valid until the next call.
  backward(mean, scale) {
    if (!this.scale) return this.encoder.backward(mean);
    const both = new Float32Array(2 * this.dim);
    both.set(mean);
    if (scale) for (let k = 0; k < this.dim; k++) both[this.dim + k] = scale[k] * this.scale[1](this.raw[k]);
    return this.encoder.backward(both);
  }

  // Logarithms of the probabilities, averaged over samples of the code where this network samples.
  //   noise: Float32Array (samples x dim), standard normal; not looked at where about.samples is 0.
  //   returns { logits: of each sample, log: Float64Array (classes), back(d): gradients { mean, scale } of the code from
  //   those with respect to `log` }, valid until the next call.
  classify(code, noise) {
    const S = this.about.samples || 1, D = this.dim, C = this.about.classes, sampled = this.about.samples > 0;
    const head = this.head(S), z = new Float32Array(S * D);
    for (let s = 0; s < S; s++) for (let k = 0; k < D; k++) {
      z[s * D + k] = code.mean[k] + (sampled ? code.scale[k] * noise[s * D + k] : 0);
    }
    const logits = head.forward(z), each = new Float64Array(S * C), log = new Float64Array(C).fill(-Infinity);
    for (let s = 0; s < S; s++) {
      const total = logSumExp(logits, s * C, C);
      for (let c = 0; c < C; c++) each[s * C + c] = logits[s * C + c] - total;
    }
    for (let c = 0; c < C; c++) {
      let largest = -Infinity, sum = 0;
      for (let s = 0; s < S; s++) largest = Math.max(largest, each[s * C + c]);
      for (let s = 0; s < S; s++) sum += Math.exp(each[s * C + c] - largest);
      log[c] = largest + Math.log(sum / S);
    }
    const back = (d) => {
      const dLogits = new Float32Array(S * C);
      for (let s = 0; s < S; s++) {
        let sum = 0;
        for (let c = 0; c < C; c++) sum += d[c] * Math.exp(each[s * C + c] - log[c]) / S;
        for (let c = 0; c < C; c++) {
          const share = d[c] * Math.exp(each[s * C + c] - log[c]) / S;
          dLogits[s * C + c] = share - sum * Math.exp(each[s * C + c]);
        }
      }
      const dz = head.backward(dLogits), mean = new Float32Array(D), scale = sampled ? new Float32Array(D) : null;
      for (let s = 0; s < S; s++) for (let k = 0; k < D; k++) {
        mean[k] += dz[s * D + k];
        if (sampled) scale[k] += dz[s * D + k] * noise[s * D + k];
      }
      return { mean, scale };
    };
    return { logits, log, back };
  }
}

function logSumExp(values, from, count) {
  let largest = -Infinity, sum = 0;
  for (let i = from; i < from + count; i++) largest = Math.max(largest, values[i]);
  for (let i = from; i < from + count; i++) sum += Math.exp(values[i] - largest);
  return largest + Math.log(sum);
}
