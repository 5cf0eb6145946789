// Drawing of slices: images and colours pixel by pixel, outlines and grids as lines.

// Okabe and Ito's colours, told apart with every common colour vision.
const LABEL_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2"];
const FIXED_COLOUR = "#56B4E9";
const OTHER_COLOUR = "#E69F00";
const FOLDING = [0, 229, 238];
const CHECKS = 7; // squares along the longer side
const GRID_LINES = 18;

const labelColour = (index) => LABEL_COLOURS[(index - 1) % LABEL_COLOURS.length];

// Colours of the image mode as a function of voxel, column and row that writes r, g, b.
function imagePainter(pair, view, state) {
  const other = pair[state.other];
  const fixed = pair.fixed;
  const { columns, rows, widthMm, heightMm } = sizeOf(pair, view);
  const square = Math.max(widthMm, heightMm) / CHECKS;
  const [stepX, stepY] = [widthMm / columns, heightMm / rows];
  const share = state.blend / 100;
  const grey = (volume) => (out, voxel) => { out[0] = out[1] = out[2] = volume[voxel]; };
  return {
    fixed: grey(fixed),
    moving: grey(pair.moving),
    warped: grey(pair.warped),
    blend: (out, voxel) => { out[0] = out[1] = out[2] = (1 - share) * fixed[voxel] + share * other[voxel]; },
    checkerboard: (out, voxel, column, row) => {
      const odd = (Math.floor(((column + 0.5) * stepX) / square) + Math.floor(((row + 0.5) * stepY) / square)) % 2;
      out[0] = out[1] = out[2] = (odd ? other : fixed)[voxel];
    },
    colours: (out, voxel) => { out[0] = out[2] = fixed[voxel]; out[1] = other[voxel]; },
  }[state.mode];
}

// Colours of the overlay over those of the image.
function overlayPainter(pair, view, position, state, tables) {
  const share = state.opacity / 100;
  const mix = (out, table, index, amount) => {
    for (let c = 0; c < 3; c += 1) out[c] += (table[3 * index + c] - out[c]) * amount;
  };
  if (state.overlay === "displacement") {
    const { length } = displacementPlane(pair, view, position);
    const scale = 255 / (pair.meta.longest || 1);
    return (out, voxel, pixel) => mix(out, tables.displacement, Math.min(255, Math.round(length[pixel] * scale)), share);
  }
  if (state.overlay === "determinant") {
    return (out, voxel) => {
      const byte = pair.determinant[voxel];
      if (byte === 0) mix(out, FOLDING, 0, 1);
      else mix(out, tables.determinant, byte, share);
    };
  }
  return null;
}

function paintSlice(target, pair, view, position, state, tables) {
  const { columns, rows } = sizeOf(pair, view);
  target.width = columns;
  target.height = rows;
  const context = target.getContext("2d");
  const image = context.createImageData(columns, rows);
  const paint = imagePainter(pair, view, state);
  const cover = overlayPainter(pair, view, position, state, tables);
  const colour = [0, 0, 0];
  eachPixel(pair, view, position, (pixel, voxel, column, row) => {
    paint(colour, voxel, column, row);
    if (cover) cover(colour, voxel, pixel);
    image.data[4 * pixel] = colour[0];
    image.data[4 * pixel + 1] = colour[1];
    image.data[4 * pixel + 2] = colour[2];
    image.data[4 * pixel + 3] = 255;
  });
  context.putImageData(image, 0, 0);
}

// Outlines of each label in a slice: closed lines of [x, y] in pixels, by label.
function outlines(pair, volume, view, position) {
  const { columns, rows } = sizeOf(pair, view);
  const width = columns + 2; // a frame of background closes every outline
  const plane = new Uint16Array(width * (rows + 2));
  const boxes = new Map();
  eachPixel(pair, view, position, (_, voxel, column, row) => {
    const label = volume[voxel];
    if (label === 0) return;
    plane[column + 1 + (row + 1) * width] = label;
    const box = boxes.get(label) || [columns, rows, 0, 0];
    boxes.set(label, [Math.min(box[0], column), Math.min(box[1], row), Math.max(box[2], column), Math.max(box[3], row)]);
  });
  const result = new Map();
  for (const [label, box] of boxes) result.set(label, chained(marchingSquares(plane, width, label, box)));
  return result;
}

// Marching squares: pairs of points between voxel centres, in half pixels.
function marchingSquares(plane, width, label, [left, top, right, bottom]) {
  const segments = [];
  for (let y = top; y <= bottom + 1; y += 1) {
    for (let x = left; x <= right + 1; x += 1) {
      const at = x + y * width;
      const inside = [at, at + 1, at + width + 1, at + width].map((cell) => plane[cell] === label);
      const sides = [[2 * x, 2 * y - 1], [2 * x + 1, 2 * y], [2 * x, 2 * y + 1], [2 * x - 1, 2 * y]];
      // The sides of the square that the outline crosses, clockwise from the top; from the frame back to pixels.
      const crossed = [0, 1, 2, 3].filter((side) => inside[side] !== inside[(side + 1) % 4]).map((side) => sides[side]);
      if (crossed.length === 2) segments.push(crossed);
      if (crossed.length === 4) {
        const first = inside[0] ? [0, 3, 1, 2] : [0, 1, 2, 3]; // keep the diagonal parts of a label apart
        segments.push([crossed[first[0]], crossed[first[1]]], [crossed[first[2]], crossed[first[3]]]);
      }
    }
  }
  return segments;
}

function chained(segments) {
  const key = (point) => point[0] * 65536 + point[1];
  const ends = new Map();
  segments.forEach((segment, index) => segment.forEach((point) => {
    const found = ends.get(key(point));
    if (found) found.push(index); else ends.set(key(point), [index]);
  }));
  const used = new Uint8Array(segments.length);
  const lines = [];
  segments.forEach((segment, start) => {
    if (used[start]) return;
    used[start] = 1;
    const line = [...segment];
    for (let next = start; next !== undefined;) {
      const end = line[line.length - 1];
      next = ends.get(key(end)).find((index) => !used[index]);
      if (next === undefined) break;
      used[next] = 1;
      const [a, b] = segments[next];
      line.push(key(a) === key(end) ? b : a);
    }
    lines.push(line.map(([x, y]) => [x / 2, y / 2]));
  });
  return lines;
}

// Lines of a grid that the displacement deforms, [x, y] in pixels: each point x is drawn at x + u(x).
function deformedGrid(pair, view, position) {
  const { columns, rows, widthMm, heightMm } = sizeOf(pair, view);
  const plane = displacementPlane(pair, view, position);
  const [stepX, stepY] = [widthMm / columns, heightMm / rows];
  const distance = Math.max(widthMm, heightMm) / GRID_LINES;
  const point = (column, row) => {
    const pixel = row * columns + column;
    return [column + 0.5 - plane.across[pixel] / stepX, row + 0.5 - plane.up[pixel] / stepY];
  };
  const [everyColumn, everyRow] = [Math.max(1, Math.round(distance / stepX)), Math.max(1, Math.round(distance / stepY))];
  const lines = [];
  for (let row = Math.floor(everyRow / 2); row < rows; row += everyRow) {
    lines.push(Array.from({ length: columns }, (_, column) => point(column, row)));
  }
  for (let column = Math.floor(everyColumn / 2); column < columns; column += everyColumn) {
    lines.push(Array.from({ length: rows }, (_, row) => point(column, row)));
  }
  return lines;
}

function strokeLines(context, lines, scale, style) {
  context.save();
  Object.assign(context, { strokeStyle: style.colour, lineWidth: style.width, lineJoin: "round", globalAlpha: style.alpha ?? 1 });
  context.setLineDash(style.dash || []);
  context.beginPath();
  for (const line of lines) {
    line.forEach(([x, y], index) => (index ? context.lineTo(x * scale[0], y * scale[1]) : context.moveTo(x * scale[0], y * scale[1])));
  }
  context.stroke();
  context.restore();
}
