// Matrix products, where nearly all of the time goes: four numbers at a time by WebAssembly's vector instructions, which
// are assembled below, or in plain JavaScript where a browser lacks them.

const upTo4 = (n) => 4 * Math.ceil(n / 4);
const PAGE = 65536; // bytes, WebAssembly's unit of memory

const memory = new WebAssembly.Memory({ initial: 64 });
let heap = new Float32Array(memory.buffer); // constants first, one after the other, then the scratch space of a product
let used = 0; // numbers of constants

// Makes room for `count` numbers behind the constants.
function reserve(count) {
  const missing = 4 * (used + count) - memory.buffer.byteLength;
  if (missing <= 0) return;
  memory.grow(Math.ceil(missing / PAGE) + 64);
  heap = new Float32Array(memory.buffer);
}

// out[M, N] = a[M, K] b[K, N]; a, b, out are places in `numbers`; a has four rows beside each other, then the next four.
export function plain(numbers, a, b, out, M, K, N) {
  for (let m = 0; m < M; m += 4) {
    for (let n = 0; n < N; n += 2) {
      let c00 = 0, c01 = 0, c10 = 0, c11 = 0, c20 = 0, c21 = 0, c30 = 0, c31 = 0;
      for (let k = 0, i = a + m * K, j = b + n; k < K; k++, i += 4, j += N) {
        const b0 = numbers[j], b1 = numbers[j + 1];
        const a0 = numbers[i], a1 = numbers[i + 1], a2 = numbers[i + 2], a3 = numbers[i + 3];
        c00 += a0 * b0; c01 += a0 * b1;
        c10 += a1 * b0; c11 += a1 * b1;
        c20 += a2 * b0; c21 += a2 * b1;
        c30 += a3 * b0; c31 += a3 * b1;
      }
      let o = out + m * N + n;
      numbers[o] = c00; numbers[o + 1] = c01; o += N;
      numbers[o] = c10; numbers[o + 1] = c11; o += N;
      numbers[o] = c20; numbers[o + 1] = c21; o += N;
      numbers[o] = c30; numbers[o + 1] = c31;
    }
  }
}

// The same as a WebAssembly module, which counts in bytes. https://webassembly.github.io/spec/core/binary/
function assemble() {
  const number = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...number(n >> 7)]); // unsigned LEB128
  const list = (...items) => [...number(items.length), ...items.flat()];
  const section = (id, content) => [id, ...number(content.length), ...content];
  const [I32, V128, NONE] = [0x7f, 0x7b, 0x40];
  const [A, B, OUT, M, K, N, m, n, k, i, j, sum, column] = Array.from({ length: 13 }, (_, index) => index);
  const sums = [0, 1, 2, 3].map((row) => column + 1 + row); // the four rows of the result at hand
  const get = (local) => [0x20, local], set = (local, ...value) => [...value.flat(), 0x21, local];
  const whole = (value) => [0x41, ...number(value)];
  const add = (x, y) => [...x, ...y, 0x6a], times = (x, y) => [...x, ...y, 0x6c], bytes = (x) => times(x, whole(4));
  const below = (x, y) => [...x, ...y, 0x49];
  const loopWhile = (body, condition) => [0x03, NONE, ...body.flat(), ...condition, 0x0d, 0, 0x0b];
  const vector = (code, ...x) => [...x.flat(), 0xfd, ...number(code)], at = (offset) => [2, ...number(offset)];
  const zero = [0xfd, 0x0c, ...Array(16).fill(0)];
  const load = (place) => [...vector(0x00, place), ...at(0)], spread = (place, offset) => [...vector(0x09, place), ...at(offset)];
  const store = (place, value) => [...vector(0x0b, place, value), ...at(0)];
  const product = (x, y) => vector(0xe6, x, y), plus = (x, y) => vector(0xe4, x, y);

  const dot = loopWhile([
    set(column, load(get(j))),
    ...sums.map((row, r) => set(row, plus(get(row), product(spread(get(i), 4 * r), get(column))))),
    set(i, add(get(i), whole(16))),
    set(j, add(get(j), bytes(get(N)))),
    set(k, add(get(k), whole(1))),
  ], below(get(k), get(K)));
  const columns = loopWhile([
    ...sums.map((row) => set(row, zero)),
    set(k, whole(0)),
    set(i, add(get(A), bytes(times(get(m), get(K))))),
    set(j, add(get(B), bytes(get(n)))),
    dot,
    set(sum, add(get(OUT), bytes(add(times(get(m), get(N)), get(n))))),
    ...sums.flatMap((row) => [store(get(sum), get(row)), set(sum, add(get(sum), bytes(get(N))))]),
    set(n, add(get(n), whole(4))),
  ], below(get(n), get(N)));
  const rows = loopWhile([set(n, whole(0)), columns, set(m, add(get(m), whole(4)))], below(get(m), get(M)));
  const body = [...list([6, I32], [5, V128]), ...rows, 0x0b]; // m, n, k, i, j, sum; column and sums
  const text = (word) => list(...[...word].map((letter) => [letter.charCodeAt(0)]));
  return Uint8Array.from([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, list([0x60, ...list(...Array(6).fill([I32])), 0])),
    ...section(2, list([...text("lab"), ...text("memory"), 2, 0, 1])),
    ...section(3, list([0])),
    ...section(7, list([...text("multiply"), 0, 0])),
    ...section(10, list([...number(body.length), ...body])),
  ]);
}

function vectorized() {
  const code = assemble();
  if (!WebAssembly.validate(code)) return null;
  const { multiply } = new WebAssembly.Instance(new WebAssembly.Module(code), { lab: { memory } }).exports;
  return (_, a, b, out, M, K, N) => multiply(4 * a, 4 * b, 4 * out, M, K, N);
}
export const fast = vectorized(); // null where the browser has no vector instructions

// A constant matrix that others are multiplied with.
export class Matrix {
  // M rows and K columns with the numbers at(m, k)
  constructor(M, K, at) {
    [this.M, this.K] = [upTo4(M), K];
    reserve(this.M * K);
    this.place = used;
    used += this.M * K;
    heap.fill(0, this.place, used);
    for (let m = 0; m < M; m++) for (let k = 0; k < K; k++) heap[this.place + (m - (m % 4)) * K + 4 * k + (m % 4)] = at(m, k);
  }

  // out = this b.
  //   b: Float32Array (K x N), out: Float32Array (M rounded up to a multiple of 4, x N); N is a multiple of 4.
  multiply(b, out, N, kernel = fast ?? plain) {
    reserve(this.K * N + this.M * N);
    const result = used + this.K * N;
    heap.set(b, used);
    kernel(heap, this.place, used, result, this.M, this.K, N);
    out.set(heap.subarray(result, result + this.M * N));
  }
}

// out[M, N] = a[M, K] b[K, N] for a matrix `a` that changes from call to call.
//   a: Float32Array with the number of row m and column k at m * down + k * along.
//   b, out: as for Matrix.multiply.
export function product(a, down, along, M, K, b, N, out, kernel = fast ?? plain) {
  const rows = upTo4(M), right = used + rows * K, result = right + K * N;
  reserve(rows * K + K * N + rows * N);
  heap.fill(0, used, right);
  for (let m = 0; m < M; m++) {
    let to = used + (m - (m % 4)) * K + (m % 4), from = m * down;
    for (let k = 0; k < K; k++, to += 4, from += along) heap[to] = a[from];
  }
  heap.set(b, right);
  kernel(heap, used, right, result, rows, K, N);
  out.set(heap.subarray(result, result + rows * N));
}

export { upTo4 };
