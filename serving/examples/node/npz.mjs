// Reads an .npz archive as numpy.savez writes it: a zip of stored (uncompressed) .npy files.

const END_OF_DIRECTORY = 0x06054b50;
const TYPES = {
  "<f8": Float64Array,
  "<f4": Float32Array,
  "<i8": BigInt64Array,
  "|b1": Uint8Array,
};

/** Arrays by name: { data: TypedArray, dims: number[], dtype: string }. */
export function readNpz(buffer) {
  const arrays = {};
  for (const [name, bytes] of entries(buffer)) arrays[name.replace(/\.npy$/, "")] = readNpy(bytes, name);
  return arrays;
}

function* entries(buffer) {
  let end = buffer.length - 22;
  while (end >= 0 && buffer.readUInt32LE(end) !== END_OF_DIRECTORY) end--;
  if (end < 0) throw new Error("not a zip archive");
  let at = buffer.readUInt32LE(end + 16);
  for (let count = buffer.readUInt16LE(end + 10); count > 0; count--) {
    const method = buffer.readUInt16LE(at + 10);
    const size = buffer.readUInt32LE(at + 20);
    const nameLength = buffer.readUInt16LE(at + 28);
    const extraLength = buffer.readUInt16LE(at + 30) + buffer.readUInt16LE(at + 32);
    const local = buffer.readUInt32LE(at + 42);
    const name = buffer.toString("utf8", at + 46, at + 46 + nameLength);
    if (method !== 0) throw new Error(`${name} is compressed; numpy.savez stores`);
    const start = local + 30 + buffer.readUInt16LE(local + 26) + buffer.readUInt16LE(local + 28);
    yield [name, buffer.subarray(start, start + size)];
    at += 46 + nameLength + extraLength;
  }
}

function readNpy(bytes, name) {
  const wide = bytes[6] > 1;
  const headerLength = wide ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8);
  const headerStart = wide ? 12 : 10;
  const header = bytes.toString("latin1", headerStart, headerStart + headerLength);
  const dtype = /'descr': '([^']+)'/.exec(header)[1];
  if (/'fortran_order': True/.test(header)) throw new Error(`${name} is in Fortran order`);
  const dims = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((part) => part.trim()).map(Number);
  const Type = TYPES[dtype];
  if (!Type) throw new Error(`${name} has type ${dtype}`);
  const body = Uint8Array.from(bytes.subarray(headerStart + headerLength)); // a copy is aligned
  return { data: new Type(body.buffer), dims, dtype };
}
