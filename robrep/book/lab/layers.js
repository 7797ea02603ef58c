// The layers of the recorded networks, forward and backward, for one image at a time.
//
// A value is a Float32Array with a shape kept beside it: [C, H, W] for maps, [rows, width] for codes and tokens (a code
// is one row, samples of it are several). A layer is { shape, forward(x), backward(d) }: `shape` is the shape it gives,
// backward takes the gradient with respect to what forward gave last and returns that with respect to what it took.
// Parameters get no gradient: an attack changes the image alone. Buffers are reused from call to call.

import { Matrix, product, upTo4 } from "./matmul.js";

const size = (shape) => shape.reduce((product, n) => product * n, 1);

// A convolution as one matrix product with the patches under the kernel as columns.
function conv2d({ stride, padding }, { weight, bias }, [C, H, W]) {
  const [outs, ins, kh, kw] = weight.shape.length === 4 ? weight.shape : [...weight.shape.slice(0, 2), 1, weight.shape[2]];
  const [sh, sw] = stride, [ph, pw] = padding;
  if (ins !== C) throw new Error(`a convolution takes ${ins} channels, but is given ${C}`);
  const oh = Math.floor((H + 2 * ph - kh) / sh) + 1, ow = Math.floor((W + 2 * pw - kw) / sw) + 1;
  const N = oh * ow, padded = upTo4(N), K = ins * kh * kw;
  const w = new Matrix(outs, K, (m, k) => weight.data[m * K + k]);
  const wt = new Matrix(K, outs, (k, m) => weight.data[m * K + k]);
  const columns = new Float32Array(wt.M * padded), result = new Float32Array(w.M * padded);
  const y = new Float32Array(outs * N), dx = new Float32Array(C * H * W + 1); // the last place collects the padding
  // place[k * padded + n]: where in the image the k-th number of the n-th patch is
  const place = new Int32Array(K * padded).fill(C * H * W), image = new Float32Array(C * H * W + 1);
  for (let c = 0, k = 0; c < C; c++) for (let i = 0; i < kh; i++) for (let j = 0; j < kw; j++, k++) {
    for (let n = 0; n < N; n++) {
      const row = Math.floor(n / ow) * sh + i - ph, column = (n % ow) * sw + j - pw;
      if (row >= 0 && row < H && column >= 0 && column < W) place[k * padded + n] = (c * H + row) * W + column;
    }
  }
  return {
    shape: [outs, oh, ow],
    forward(x) {
      image.set(x);
      for (let p = 0; p < place.length; p++) columns[p] = image[place[p]];
      w.multiply(columns.subarray(0, K * padded), result, padded);
      for (let m = 0; m < outs; m++) {
        const b = bias ? bias.data[m] : 0;
        for (let n = 0; n < N; n++) y[m * N + n] = result[m * padded + n] + b;
      }
      return y;
    },
    backward(d) {
      for (let m = 0; m < outs; m++) for (let n = 0; n < N; n++) result[m * padded + n] = d[m * N + n];
      wt.multiply(result.subarray(0, outs * padded), columns, padded);
      dx.fill(0);
      for (let p = 0; p < place.length; p++) dx[place[p]] += columns[p];
      return dx.subarray(0, C * H * W);
    },
  };
}

// A 3 x 3 convolution and the mean over all positions: the kernel on the nine means of the shifted map.
function pooledConv(_, { weight, bias }, [C, H, W]) {
  const outs = weight.shape[0], K = 9 * C;
  const kernel = linear(null, { weight: { shape: [outs, K], data: weight.data }, bias }, [1, K]);
  const means = new Float32Array(K), dx = new Float32Array(C * H * W), at = [], from = [];
  // the rows (columns) that the window's first, middle and last row (column) sees: not the last, all, not the first
  const sees = [(i, n) => i < n - 1, () => true, (i) => i > 0];
  for (let c = 0; c < C; c++) for (let h = 0; h < H; h++) for (let v = 0; v < W; v++) {
    for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) {
      if (sees[i](h, H) && sees[j](v, W)) {
        at.push((c * H + h) * W + v);
        from.push(9 * c + 3 * i + j);
      }
    }
  }
  const places = Int32Array.from(at), sources = Int32Array.from(from);
  return {
    shape: kernel.shape,
    forward(x) {
      means.fill(0);
      for (let p = 0; p < places.length; p++) means[sources[p]] += x[places[p]] / (H * W);
      return kernel.forward(means);
    },
    backward(d) {
      const slopes = kernel.backward(d);
      dx.fill(0);
      for (let p = 0; p < places.length; p++) dx[places[p]] += slopes[sources[p]] / (H * W);
      return dx;
    },
  };
}

// Each row times the weight's transpose, plus the bias.
function linear(_, { weight, bias }, shape) {
  const [outs, ins] = weight.shape, rows = size(shape) / ins;
  if (!Number.isInteger(rows)) throw new Error(`a linear layer takes ${ins} numbers, but is given ${shape.join(" x ")}`);
  const w = new Matrix(outs, ins, (m, k) => weight.data[m * ins + k]);
  const wt = new Matrix(ins, outs, (k, m) => weight.data[m * ins + k]);
  const padded = upTo4(rows), columns = new Float32Array(Math.max(w.M, wt.M) * padded);
  const result = new Float32Array(Math.max(w.M, wt.M) * padded);
  const y = new Float32Array(rows * outs), dx = new Float32Array(rows * ins);
  // into[rows, M] = x[rows, K] matrix^T + shift[M]: `matrix` is on the left, so rows become columns
  const product = (x, matrix, K, M, shift, into) => {
    for (let r = 0; r < rows; r++) for (let k = 0; k < K; k++) columns[k * padded + r] = x[r * K + k];
    matrix.multiply(columns.subarray(0, K * padded), result, padded);
    for (let r = 0; r < rows; r++) for (let m = 0; m < M; m++) into[r * M + m] = result[m * padded + r] + (shift ? shift[m] : 0);
    return into;
  };
  return {
    shape: [rows, outs],
    forward: (x) => product(x, w, ins, outs, bias?.data, y),
    backward: (d) => product(d, wt, outs, ins, null, dx),
  };
}

function relu(_, __, shape) {
  const y = new Float32Array(size(shape)), dx = new Float32Array(size(shape));
  return {
    shape,
    forward(x) {
      for (let i = 0; i < y.length; i++) y[i] = x[i] > 0 ? x[i] : 0;
      return y;
    },
    backward(d) {
      for (let i = 0; i < y.length; i++) dx[i] = y[i] > 0 ? d[i] : 0;
      return dx;
    },
  };
}

// x times the normal distribution function at x, which is (1 + erf(x / sqrt 2)) / 2; erf by Abramowitz and Stegun
// 7.1.26, to 1.5e-7.
function gelu(_, __, shape) {
  const y = new Float32Array(size(shape)), dx = new Float32Array(size(shape)), slope = new Float32Array(size(shape));
  return {
    shape,
    forward(x) {
      for (let i = 0; i < y.length; i++) {
        const bell = Math.exp(-0.5 * x[i] * x[i]), t = 1 / (1 + (0.3275911 * Math.abs(x[i])) / Math.SQRT2);
        const tail = 0.5 * bell * t *
          (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
        const cdf = x[i] < 0 ? tail : 1 - tail;
        y[i] = x[i] * cdf;
        slope[i] = cdf + (x[i] * bell) / Math.sqrt(2 * Math.PI);
      }
      return y;
    },
    backward(d) {
      for (let i = 0; i < y.length; i++) dx[i] = slope[i] * d[i];
      return dx;
    },
  };
}

// Batch normalisation with its recorded statistics: a factor and a shift for each channel.
function batchNorm({ eps, channels }, { weight, bias, running_mean, running_var }, shape) {
  const count = weight.data.length, n = size(shape), inner = channels === "first" ? n / count : 1;
  const factor = weight.data.map((w, c) => w / Math.sqrt(running_var.data[c] + eps));
  const y = new Float32Array(n), dx = new Float32Array(n);
  const channel = Int32Array.from(y, (_, i) => Math.floor(i / inner) % count);
  return {
    shape,
    forward(x) {
      for (let i = 0; i < n; i++) {
        const c = channel[i];
        y[i] = (x[i] - running_mean.data[c]) * factor[c] + bias.data[c];
      }
      return y;
    },
    backward(d) {
      for (let i = 0; i < n; i++) dx[i] = factor[channel[i]] * d[i];
      return dx;
    },
  };
}

// Each row at mean 0 and variance 1, then a factor and a shift for each column.
function layerNorm({ eps }, { weight, bias }, shape) {
  const width = weight.data.length, rows = size(shape) / width;
  const unit = new Float64Array(rows * width), deviation = new Float64Array(rows);
  const y = new Float32Array(rows * width), dx = new Float32Array(rows * width);
  return {
    shape,
    forward(x) {
      for (let r = 0; r < rows; r++) {
        let mean = 0, variance = 0;
        for (let k = 0; k < width; k++) mean += x[r * width + k] / width;
        for (let k = 0; k < width; k++) variance += (x[r * width + k] - mean) ** 2 / width;
        deviation[r] = Math.sqrt(variance + eps);
        for (let k = 0; k < width; k++) {
          const i = r * width + k;
          unit[i] = (x[i] - mean) / deviation[r];
          y[i] = unit[i] * weight.data[k] + bias.data[k];
        }
      }
      return y;
    },
    backward(d) {
      for (let r = 0; r < rows; r++) {
        let sum = 0, along = 0;
        for (let k = 0; k < width; k++) {
          const g = d[r * width + k] * weight.data[k];
          sum += g / width;
          along += (g * unit[r * width + k]) / width;
        }
        for (let k = 0; k < width; k++) {
          const i = r * width + k;
          dx[i] = (d[i] * weight.data[k] - sum - unit[i] * along) / deviation[r];
        }
      }
      return dx;
    },
  };
}

// Self-attention of queries, keys and values side by side, [tokens, 3 width], within each of `groups` sequences.
function attention({ heads, groups }, _, [tokens, triple]) {
  const width = triple / 3, n = tokens / groups, dim = width / heads, scale = 1 / Math.sqrt(dim);
  const N = upTo4(n), D = upTo4(dim); // padded with zeros
  const seen = new Float32Array(tokens * triple), y = new Float32Array(tokens * width), dx = new Float32Array(tokens * triple);
  const rows = () => new Float32Array(N * D), columns = () => new Float32Array(D * N), square = () => new Float32Array(N * N);
  const [q, k, v, o, dq, dk, dv] = Array.from({ length: 7 }, rows); // of one head, [n, dim]
  const [kt, vt] = [columns(), columns()]; // transposed
  const dots = square(), shares = Array.from({ length: groups * heads }, square); // [n, n]
  const read = (from, start, step, to, transposed) => {
    for (let t = 0; t < n; t++) for (let i = 0; i < dim; i++) {
      const value = from[start + t * step + i];
      to[t * D + i] = value;
      if (transposed) transposed[i * N + t] = value;
    }
  };
  const write = (from, to, start, step) => {
    for (let t = 0; t < n; t++) for (let i = 0; i < dim; i++) to[start + t * step + i] = from[t * D + i];
  };
  // calls act(first number of the head's queries, first number of what it gives, its shares)
  const each = (act) => {
    for (let g = 0; g < groups; g++) for (let h = 0; h < heads; h++) {
      act(g * n * triple + h * dim, g * n * width + h * dim, shares[g * heads + h]);
    }
  };
  function softmax(a) {
    for (let t = 0; t < n; t++) {
      let sum = 0, largest = -Infinity;
      for (let s = t * N; s < t * N + n; s++) if (dots[s] > largest) largest = dots[s];
      for (let s = t * N; s < t * N + n; s++) sum += a[s] = Math.exp(scale * (dots[s] - largest));
      for (let s = t * N; s < t * N + n; s++) a[s] /= sum;
    }
  }
  function softmaxBack(a) { // dots: from gradients of the shares to those of the dot products
    for (let t = 0; t < n; t++) {
      let mean = 0;
      for (let s = t * N; s < t * N + n; s++) mean += a[s] * dots[s];
      for (let s = t * N; s < t * N + n; s++) dots[s] = scale * a[s] * (dots[s] - mean);
    }
  }
  return {
    shape: [tokens, width],
    forward(x) {
      seen.set(x);
      each((from, to, a) => {
        read(x, from, triple, q);
        read(x, from + width, triple, k, kt);
        read(x, from + 2 * width, triple, v);
        product(q, D, 1, n, D, kt, N, dots);
        softmax(a);
        product(a, N, 1, n, N, v, D, o);
        write(o, y, to, width);
      });
      return y;
    },
    backward(d) {
      each((from, to, a) => {
        read(seen, from, triple, q);
        read(seen, from + width, triple, k);
        read(seen, from + 2 * width, triple, v, vt);
        read(d, to, width, o);
        product(a, 1, N, n, N, o, D, dv);
        product(o, D, 1, n, D, vt, N, dots);
        softmaxBack(a);
        product(dots, N, 1, n, N, k, D, dq);
        product(dots, 1, N, n, N, q, D, dk);
        [dq, dk, dv].forEach((part, p) => write(part, dx, from + p * width, triple));
      });
      return dx;
    },
  };
}

// x + body(x)
function residual({ body }, tensors, shape) {
  const inside = chain(body, tensors, shape), y = new Float32Array(size(shape)), dx = new Float32Array(size(shape));
  return {
    shape,
    forward(x) {
      const change = inside.forward(x);
      for (let i = 0; i < y.length; i++) y[i] = x[i] + change[i];
      return y;
    },
    backward(d) {
      const change = inside.backward(d);
      for (let i = 0; i < dx.length; i++) dx[i] = d[i] + change[i];
      return dx;
    },
  };
}

// y[i] is the mean of the numbers x[j] with [i, j] in `pairs`, plus constant[i]: whatever only moves and averages numbers.
function gathered(shape, inputs, pairs, constant, share = 1) {
  const y = new Float32Array(size(shape)), dx = new Float32Array(inputs);
  const to = Int32Array.from(pairs, ([i]) => i), from = Int32Array.from(pairs, ([, j]) => j);
  return {
    shape,
    forward(x) {
      for (let i = 0; i < y.length; i++) y[i] = constant ? constant[i] : 0;
      for (let p = 0; p < to.length; p++) y[to[p]] += share * x[from[p]];
      return y;
    },
    backward(d) {
      dx.fill(0);
      for (let p = 0; p < to.length; p++) dx[from[p]] += share * d[to[p]];
      return dx;
    },
  };
}

const permute = ({ index, shape }, _, before) => gathered(shape, size(before), index.map((j, i) => [i, j]));

// x plus a constant that is repeated `times` times
function add({ times }, { constant }, shape) {
  const n = constant.data.length, all = Float32Array.from({ length: n * times }, (_, i) => constant.data[i % n]);
  return gathered(shape, size(shape), Array.from(all, (_, i) => [i, i]), all);
}

// Some of the rows, in the order of `index`; where it is -1, the filler.
function rows({ index }, { filler }, shape) {
  const width = shape[1], pairs = [], constant = new Float32Array(index.length * width);
  index.forEach((row, r) => {
    if (row < 0) constant.set(filler.data, r * width);
    else for (let k = 0; k < width; k++) pairs.push([r * width + k, row * width + k]);
  });
  return gathered([index.length, width], size(shape), pairs, constant);
}

function meanRows({ pairs }, _, shape) {
  const width = shape[1], every = [];
  pairs.forEach((two, r) => two.forEach((row) => {
    for (let k = 0; k < width; k++) every.push([r * width + k, row * width + k]);
  }));
  // a Conv1d follows, whose channels are the rows
  return gathered([pairs.length, 1, width], size(shape), every, null, 0.5);
}

const flatten = (_, __, shape) => ({ shape: [1, size(shape)], forward: (x) => x, backward: (d) => d });

const LAYERS = {
  conv2d, pooledConv, linear, relu, gelu, batchNorm, layerNorm, attention, residual, permute, add, rows, meanRows, flatten,
};
const TENSORS = ["weight", "bias", "running_mean", "running_var", "constant", "filler"];

// Layers one after the other, built from their descriptions.
//   descriptions: as robrep/book/lab/describe.py writes them.
//   tensors: { name: { shape, data } }, all that the descriptions name.
//   shape: of what goes in.
//   returns a layer: { shape, forward, backward }.
//   throws Error: a layer that is not known, or a tensor that is missing.
export function chain(descriptions, tensors, shape) {
  const layers = [], input = shape;
  for (const description of descriptions) {
    const make = Object.hasOwn(LAYERS, description.op) ? LAYERS[description.op] : null;
    if (!make) throw new Error(`the lab does not know the layer "${description.op}"`);
    const own = {};
    for (const key of TENSORS.filter((each) => description[each])) {
      own[key] = tensors[description[key]];
      if (!own[key]) throw new Error(`the tensor ${description[key]} is missing`);
    }
    const layer = make(description, description.body ? tensors : own, shape);
    layers.push(layer);
    shape = layer.shape;
  }
  return {
    input,
    shape,
    forward: (x) => layers.reduce((value, layer) => layer.forward(value), x),
    backward: (d) => layers.reduceRight((gradient, layer) => layer.backward(gradient), d),
  };
}
