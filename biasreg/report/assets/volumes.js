// Volumes of a pair: kept as gzipped base64 in the page, unpacked when the pair is looked at.

const VIEWS = [
  { name: "axial", cut: 2, across: 0, up: 1, marks: { left: "R", right: "L", top: "A", bottom: "P" } },
  { name: "coronal", cut: 1, across: 0, up: 2, marks: { left: "R", right: "L", top: "S", bottom: "I" } },
  { name: "sagittal", cut: 0, across: 1, up: 2, marks: { left: "A", right: "P", top: "S", bottom: "I" } },
];

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function unpack(base64) {
  const packed = new Blob([bytesOf(base64)]);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function loadPair(meta, index) {
  const pair = { meta, shape: meta.shape, spacing: meta.spacing, planes: new Map() };
  const Labels = meta.labels.length < 256 ? Uint8Array : Uint16Array;
  const kinds = {
    fixed: Uint8Array, moving: Uint8Array, warped: Uint8Array, determinant: Uint8Array, displacement: Int16Array,
    fixed_labels: Labels, moving_labels: Labels, warped_labels: Labels,
  };
  const names = Object.keys(kinds).filter((name) => document.getElementById(`volume-${index}-${name}`));
  await Promise.all(names.map(async (name) => {
    const text = document.getElementById(`volume-${index}-${name}`).textContent.trim();
    const values = new kinds[name](await unpack(text));
    for (let i = 1; i < values.length; i += 1) values[i] += values[i - 1]; // kept as steps, which wrap as the values do
    pair[name] = values;
  }));
  return pair;
}

const sizeOf = (pair, view) => ({
  columns: pair.shape[view.across],
  rows: pair.shape[view.up],
  slices: pair.shape[view.cut],
  widthMm: pair.shape[view.across] * pair.spacing[view.across],
  heightMm: pair.shape[view.up] * pair.spacing[view.up],
});

// Index of a voxel: x fastest, then y and z.
const strides = (shape) => [1, shape[0], shape[0] * shape[1]];

// Call visit(pixel, voxel) for each pixel of a slice, rows from the top. Both axes run against the screen:
// the patient's right, or front, is at the left.
function eachPixel(pair, view, position, visit) {
  const { columns, rows } = sizeOf(pair, view);
  const step = strides(pair.shape);
  let pixel = 0;
  for (let row = 0; row < rows; row += 1) {
    let voxel = position * step[view.cut] + (rows - 1 - row) * step[view.up] + (columns - 1) * step[view.across];
    for (let column = 0; column < columns; column += 1) {
      visit(pixel, voxel, column, row);
      pixel += 1;
      voxel -= step[view.across];
    }
  }
}

// Where each voxel of a side lies between the voxels of the coarser field: lower index and weight of the next.
function sampling(fine, coarse) {
  return Array.from({ length: fine }, (_, i) => {
    const place = Math.min(coarse - 1, Math.max(0, ((i + 0.5) * coarse) / fine - 0.5));
    const lower = Math.min(Math.floor(place), Math.max(0, coarse - 2));
    return { lower, upper: Math.min(lower + 1, coarse - 1), weight: place - lower };
  });
}

// Displacement at voxel positions, mm along the grid's axes.
function displacementAt(pair, samples, x, y, z) {
  const [width, height, depth] = pair.meta.fieldShape;
  const plane = width * height;
  const [sx, sy, sz] = [samples[0][x], samples[1][y], samples[2][z]];
  const result = [0, 0, 0];
  for (const [i, wi] of [[sx.lower, 1 - sx.weight], [sx.upper, sx.weight]]) {
    for (const [j, wj] of [[sy.lower, 1 - sy.weight], [sy.upper, sy.weight]]) {
      for (const [k, wk] of [[sz.lower, 1 - sz.weight], [sz.upper, sz.weight]]) {
        const weight = wi * wj * wk * pair.meta.fieldStep;
        if (weight === 0) continue;
        const voxel = i + j * width + k * plane;
        for (let c = 0; c < 3; c += 1) result[c] += weight * pair.displacement[voxel + c * plane * depth];
      }
    }
  }
  return result;
}

function samplesOf(pair) {
  pair.samples = pair.samples || pair.shape.map((size, axis) => sampling(size, pair.meta.fieldShape[axis]));
  return pair.samples;
}

// The displacement in a slice, by pixel: its parts in the plane, towards larger indices, and its length; mm.
function displacementPlane(pair, view, position) {
  const key = `${view.name}/${position}`;
  if (!pair.planes.has(key)) {
    if (pair.planes.size > 30) pair.planes.clear();
    const { columns, rows } = sizeOf(pair, view);
    const samples = samplesOf(pair);
    const plane = { across: new Float32Array(columns * rows), up: new Float32Array(columns * rows), length: new Float32Array(columns * rows) };
    const index = [0, 0, 0];
    index[view.cut] = position;
    eachPixel(pair, view, position, (pixel, _, column, row) => {
      index[view.across] = columns - 1 - column;
      index[view.up] = rows - 1 - row;
      const d = displacementAt(pair, samples, ...index);
      plane.across[pixel] = d[view.across];
      plane.up[pixel] = d[view.up];
      plane.length[pixel] = Math.hypot(...d);
    });
    pair.planes.set(key, plane);
  }
  return pair.planes.get(key);
}

const determinantOf = (byte) => (byte === 0 ? 0 : (byte - 1) / 127);
