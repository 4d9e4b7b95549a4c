// Unpack the data of the report: base64 → gzip → JSON head and typed arrays (stages/reporting/columns.py).

const ARRAY_TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };

/** Return the head of the data, with `arrays` replaced by typed arrays by name. */
export async function unpack(text) {
  const compressed = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const headLength = new DataView(bytes.buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + headLength)));
  const columns = {};
  for (const [name, [type, begin, size]] of Object.entries(head.arrays)) {
    columns[name] = joinPlanes(bytes, 4 + headLength + begin, ARRAY_TYPES[type], size);
  }
  return { ...head, arrays: columns };
}

/** Return a typed array whose values are stored plane by plane: all first bytes, then all second bytes … */
function joinPlanes(bytes, begin, type, size) {
  const width = type.BYTES_PER_ELEMENT;
  const joined = new Uint8Array(size * width);
  for (let plane = 0; plane < width; plane++) {
    const from = begin + plane * size;
    for (let i = 0, to = plane; i < size; i++, to += width) joined[to] = bytes[from + i];
  }
  return new type(joined.buffer);
}
