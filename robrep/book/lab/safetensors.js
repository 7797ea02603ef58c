// Reads a safetensors file: 8 bytes of header length, a JSON header, then the tensors' bytes.
// https://github.com/huggingface/safetensors

const BYTES = { F16: 2, F32: 4, U8: 1 };

// The float16 numbers of `view` as float32.
function halves(view, from, count) {
  const out = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const h = view.getUint16(from + 2 * i, true);
    const sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent === 31) out[i] = fraction ? NaN : sign * Infinity;
    else out[i] = sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  }
  return out;
}

function tensor(view, name, { dtype, shape, data_offsets: [begin, end] }, start) {
  const count = shape.reduce((product, size) => product * size, 1);
  if (!BYTES[dtype]) throw new Error(`${name} has numbers of type ${dtype}, expected F16, F32 or U8`);
  if (end - begin !== count * BYTES[dtype] || start + end > view.byteLength) {
    throw new Error(`${name} has ${end - begin} bytes, expected ${count * BYTES[dtype]} within the file`);
  }
  const from = view.byteOffset + start + begin;
  let data;
  if (dtype === "U8") data = new Uint8Array(view.buffer.slice(from, from + count));
  else if (dtype === "F32") data = new Float32Array(view.buffer.slice(from, from + 4 * count));
  else data = halves(view, start + begin, count);
  if (dtype !== "U8" && !data.every(Number.isFinite)) throw new Error(`${name} has numbers that are not finite`);
  return { shape, data };
}

// Tensors and metadata of a file.
//   bytes: Uint8Array, the whole file.
//   returns { tensors: { name: { shape, data } }, metadata: { name: text } }; floats as Float32Array, bytes as Uint8Array.
//   throws Error: not a whole safetensors file, or numbers that are not finite.
export function parse(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length >= 8 ? Number(view.getBigUint64(0, true)) : Infinity;
  if (!(8 + length <= bytes.length)) throw new Error(`the file has ${bytes.length} bytes, fewer than its header says`);
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)));
  } catch {
    throw new Error("the file's header is not JSON");
  }
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, entry] of Object.entries(entries)) tensors[name] = tensor(view, name, entry, 8 + length);
  return { tensors, metadata };
}

let table = null;

// CRC-32 (ISO 3309, as zlib computes it) of some bytes: an unsigned 32-bit number.
export function crc32(bytes) {
  table ??= Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  let c = 0xffffffff;
  for (const byte of bytes) c = table[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}
