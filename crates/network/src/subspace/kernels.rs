//! Two blocks of convolution and pooling and a tail of dense layers, image by image and model by model, on a CPU with AVX-512.
//!
//! The first block's convolution is a combination of those of the frame ([`super`]), pooled in registers. The second, of 5x5, is Winograd's
//! F(2, 5) along the rows: two outputs by six products instead of ten (Winograd 1980, "Arithmetic complexity of computations"; Lavin and
//! Gray 2016, "Fast algorithms for convolutional neural networks"), at the points 0, ±1, ±2 and ∞. On random numbers in f32 its error is
//! twice that of the plain sum (3e-7). A pair of outputs in two rows is a window of the pooling.

use crate::block;
use std::arch::x86_64::{
    __m256, __m512, _mm256_castpd_ps, _mm256_mask_storeu_ps, _mm512_add_ps, _mm512_castps_pd,
    _mm512_castps512_ps256, _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_permutex2var_ps, _mm512_set_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};
use std::mem::MaybeUninit;

/// Numbers of a vector.
pub const LANES: usize = 16;
/// The side of the second block's kernel.
pub const KERNEL: usize = 5;
/// Points at which Winograd's products are taken.
const POINTS: usize = KERNEL + 1;
/// What may be read behind the last row.
const ROOM: usize = 2 * LANES;

/// The sizes of the two blocks.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Channels and kernel of the first convolution.
    pub first: [usize; 2],
    /// Channels of the second.
    pub second: usize,
    /// Whether ReLU follows, of each.
    pub rectified: [bool; 2],
}

impl Shape {
    /// Height and width of the first convolution's output.
    fn convolved(self) -> [usize; 2] {
        [self.image[1] - self.first[1] + 1, self.image[2] - self.first[1] + 1]
    }

    /// The same, pooled.
    fn pooled(self) -> [usize; 2] {
        self.convolved().map(|side| side / 2)
    }

    /// Rows and columns of the second block's windows.
    pub fn windows(self) -> [usize; 2] {
        self.pooled().map(|side| (side - (KERNEL - 1)) / 2)
    }

    /// Numbers of a map: the first convolution of one of the frame, of an image.
    pub fn map(self) -> usize {
        let [height, width] = self.convolved();
        self.first[0] * height * width
    }

    /// Every other column of a pooled row that the second convolution reads.
    fn half(self) -> usize {
        self.windows()[1] + KERNEL / 2
    }

    /// Numbers of all even (or odd) columns of an image.
    fn halves(self) -> usize {
        self.first[0] * self.pooled()[0] * self.half()
    }

    /// Vectors of the second block's outputs.
    fn groups(self) -> usize {
        self.second.div_ceil(LANES)
    }

    /// Numbers of an image's features: `[groups, windows, 16]`.
    pub fn features(self) -> usize {
        let [rows, columns] = self.windows();
        self.groups() * rows * columns * LANES
    }

    /// Where in the features the number of an output and a window lies.
    pub fn feature(self, output: usize, window: usize) -> usize {
        let [rows, columns] = self.windows();
        (output / LANES * rows * columns + window) * LANES + output % LANES
    }
}

/// A model's second convolution: `[groups, POINTS, C, KERNEL, 16]`, and its bias `[groups, 16]`.
#[derive(Debug)]
pub struct Second {
    taps: Vec<f32>,
    bias: Vec<f32>,
}

impl Second {
    /// From `[O, C, 5, 5]` and `[O]`.
    pub fn of(weight: &[f32], bias: &[f32], shape: Shape) -> Self {
        let (inputs, groups) = (shape.first[0], shape.groups());
        assert!(weight.len() == shape.second * inputs * KERNEL * KERNEL && bias.len() == shape.second);
        let mut taps = vec![0.; groups * POINTS * inputs * KERNEL * LANES];
        for (output, weight) in weight.chunks_exact(inputs * KERNEL * KERNEL).enumerate() {
            for (row, g) in weight.chunks_exact(KERNEL).enumerate() {
                for (point, value) in at_points(g).into_iter().enumerate() {
                    let place = (output / LANES * POINTS + point) * inputs * KERNEL + row;
                    taps[place * LANES + output % LANES] = value;
                }
            }
        }
        let mut wide = vec![0.; groups * LANES];
        wide[..bias.len()].copy_from_slice(bias);
        Self { taps, bias: wide }
    }
}

/// A row of the kernel as a polynomial, at 0, ±1, ±2 and ∞, with the denominators of the interpolation.
fn at_points(g: &[f32]) -> [f32; POINTS] {
    let at = |x: f64, denominator: f64| {
        (g.iter().rev().fold(0., |sum, &g| sum * x + f64::from(g)) / denominator) as f32
    };
    [at(0., 4.), at(1., -6.), at(-1., -6.), at(2., 24.), at(-2., 24.), g[KERNEL - 1]]
}

/// How many vectors of outputs are computed together, where so many numbers are left.
fn panel(left: usize) -> usize {
    match left / LANES {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// A dense layer: `[inputs, panel]` for each [`panel`] of outputs, which are read from one end to the other, and `[wide]`, wide being the
/// outputs' number up to whole vectors.
#[derive(Debug)]
pub struct Dense {
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl Dense {
    /// From `[outputs, F]` and `[outputs]`; `place` says where among `inputs` each of the F lies.
    pub fn of(weight: &[f32], bias: &[f32], inputs: usize, place: impl Fn(usize) -> usize) -> Self {
        let (outputs, wide) = (bias.len(), bias.len().next_multiple_of(LANES));
        let each = weight.len() / outputs;
        let mut packed = vec![0.; inputs * wide];
        let mut start = 0;
        while start < outputs {
            let panel = panel(wide - start) * LANES;
            let here = panel.min(outputs - start);
            for f in 0..each {
                let row = &mut packed[start * inputs + place(f) * panel..][..here];
                for (output, to) in row.iter_mut().enumerate() {
                    *to = weight[(start + output) * each + f];
                }
            }
            start += panel;
        }
        let mut padded = vec![0.; wide];
        padded[..outputs].copy_from_slice(bias);
        Self { weight: packed, bias: padded, inputs }
    }

    /// Numbers of an output row.
    pub fn wide(&self) -> usize {
        self.bias.len()
    }

    /// Rows of x, of `stride` numbers each, to rows of [`Dense::wide`].
    pub fn apply(&self, x: &[f32], stride: usize, y: &mut [f32], rectified: bool) {
        let (wide, rows) = (self.wide(), y.len() / self.wide());
        assert!(
            block::available() && self.inputs <= stride && x.len() >= rows * stride && y.len() == rows * wide
        );
        let mut column = 0;
        while column < wide {
            // SAFETY: the processor and the lengths were checked above, and panels end at `wide`.
            column += unsafe {
                match panel(wide - column) {
                    4 => self.columns::<4, 6>(x, stride, y, column, rectified),
                    2 => self.columns::<2, 8>(x, stride, y, column, rectified),
                    _ => self.columns::<1, 8>(x, stride, y, column, rectified),
                }
            };
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn columns<const V: usize, const R: usize>(
        &self,
        x: &[f32],
        stride: usize,
        y: &mut [f32],
        column: usize,
        rectified: bool,
    ) -> usize {
        let rows = y.len() / self.wide();
        let whole = rows / R * R;
        // SAFETY: as the caller's.
        unsafe {
            for row in (0..whole).step_by(R) {
                self.tile::<V, R>(x, stride, y, [row, column], rectified);
            }
            for row in whole..rows {
                self.tile::<V, 1>(x, stride, y, [row, column], rectified);
            }
        }
        V * LANES
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const V: usize, const R: usize>(
        &self,
        x: &[f32],
        stride: usize,
        y: &mut [f32],
        [row, column]: [usize; 2],
        rectified: bool,
    ) {
        let wide = self.wide();
        // SAFETY: rows up to `row + R` and columns up to `column + 16 V` exist on all sides.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            for v in 0..V {
                let bias = _mm512_loadu_ps(self.bias.as_ptr().add(column + v * LANES));
                for sums in &mut sums {
                    sums[v] = bias;
                }
            }
            let (x, w) = (x.as_ptr().add(row * stride), self.weight.as_ptr().add(column * self.inputs));
            for k in 0..self.inputs {
                let mut weights = [_mm512_setzero_ps(); V];
                for (v, to) in weights.iter_mut().enumerate() {
                    *to = _mm512_loadu_ps(w.add((k * V + v) * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let one = _mm512_set1_ps(*x.add(r * stride + k));
                    for v in 0..V {
                        sums[v] = _mm512_fmadd_ps(one, weights[v], sums[v]);
                    }
                }
            }
            let zero = _mm512_setzero_ps();
            for (r, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let value = if rectified { _mm512_max_ps(sum, zero) } else { sum };
                    _mm512_storeu_ps(y.as_mut_ptr().add((row + r) * wide + column + v * LANES), value);
                }
            }
        }
    }
}

/// The frame's first convolutions.
#[derive(Debug)]
pub struct First {
    /// `[D + 1, O, C K K]`.
    taps: Vec<f32>,
    bias: Vec<f32>,
}

/// A model: where it lies, and its weights behind the first convolution.
#[derive(Debug)]
pub struct Model {
    /// D of them.
    pub coordinates: Vec<f32>,
    pub second: Second,
    pub dense: Vec<Dense>,
}

/// Room for what lies between the layers, for one thread.
#[derive(Debug)]
pub struct Scratch {
    /// `[images, D + 1, map]`.
    maps: Vec<f32>,
    /// `[models, images, 2, halves]`, even columns and odd ones.
    halves: Vec<f32>,
    /// `[POINTS, halves]`.
    points: Vec<f32>,
}

/// Images that go through the first two blocks together, and models: what lies between them stays in the second-level cache.
const IMAGES: usize = 4;
const MODELS: usize = 16;

impl Scratch {
    pub fn new(shape: Shape, dimensions: usize) -> Self {
        let halves = 2 * shape.halves() + ROOM;
        Self {
            maps: vec![0.; IMAGES * (dimensions + 1) * shape.map()],
            halves: vec![0.; MODELS * IMAGES * halves],
            points: vec![0.; POINTS * (shape.halves() + ROOM)],
        }
    }
}

impl First {
    /// From the `[O, C, K, K]` and `[O]` of each of the frame.
    pub fn of(frame: &[(&[f32], &[f32])], shape: Shape) -> Self {
        let taps = frame.iter().flat_map(|(weight, _)| weight.iter().copied()).collect();
        let bias = frame.iter().flat_map(|(_, bias)| bias.iter().copied()).collect::<Vec<f32>>();
        assert!(bias.len() == frame.len() * shape.first[0]);
        Self { taps, bias }
    }

    /// The maps of an image: of each of the frame its convolution, `[D + 1, O, H', W']`.
    fn maps(&self, x: &[f32], maps: &mut [f32], shape: Shape) {
        let [inputs, height, width] = shape.image;
        let [rows, columns] = shape.convolved();
        let kernel = shape.first[1];
        assert!(x.len() == inputs * height * width && maps.len() == self.bias.len() * rows * columns);
        assert!(self.taps.len() == self.bias.len() * inputs * kernel * kernel);
        let mut output = 0;
        while output < self.bias.len() {
            let place = &mut maps[output * rows * columns..];
            // SAFETY: the processor was checked by whoever calls this; the lengths were checked above.
            output += unsafe {
                match self.bias.len() - output {
                    6.. => self.convolve::<6>(x, place, shape, output),
                    3.. => self.convolve::<3>(x, place, shape, output),
                    _ => self.convolve::<1>(x, place, shape, output),
                }
            };
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn convolve<const N: usize>(
        &self,
        x: &[f32],
        maps: &mut [f32],
        shape: Shape,
        output: usize,
    ) -> usize {
        let [inputs, height, width] = shape.image;
        let [rows, columns] = shape.convolved();
        let kernel = shape.first[1];
        let taps = inputs * kernel * kernel;
        for row in 0..rows {
            for column in (0..columns).step_by(LANES) {
                let mask = first_lanes(columns - column);
                let mut sums = [_mm512_setzero_ps(); N];
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_set1_ps(self.bias[output + n]);
                }
                for input in 0..inputs {
                    for ky in 0..kernel {
                        for kx in 0..kernel {
                            let from = (input * height + row + ky) * width + column + kx;
                            let tap = (input * kernel + ky) * kernel + kx;
                            // SAFETY: the last lane reads column `columns - 1 + kx` < width of a row below height.
                            let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(from)) };
                            for (n, sum) in sums.iter_mut().enumerate() {
                                let w = _mm512_set1_ps(self.taps[(output + n) * taps + tap]);
                                *sum = _mm512_fmadd_ps(w, x, *sum);
                            }
                        }
                    }
                }
                for (n, sum) in sums.into_iter().enumerate() {
                    let to = (n * rows + row) * columns + column;
                    // SAFETY: the mask ends with the row.
                    unsafe {
                        _mm512_mask_storeu_ps(maps.as_mut_ptr().add(to), mask, sum);
                    }
                }
            }
        }
        N
    }
}

fn first_lanes(count: usize) -> u16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}

/// The features of all images `x` `[B, image]` under each model, `[models, B, features]`. D is 1 or 2.
pub fn features(
    first: &First,
    models: &[Model],
    x: &[f32],
    found: &mut [f32],
    shape: Shape,
    scratch: &mut Scratch,
) {
    let (image, map) = (shape.image.iter().product::<usize>(), shape.map());
    let (batch, each) = (x.len() / image, shape.features());
    let frame = first.bias.len() / shape.first[0];
    let halves = 2 * shape.halves() + ROOM;
    assert!(block::available() && x.len() == batch * image && found.len() == models.len() * batch * each);
    assert!(scratch.maps.len() == IMAGES * frame * map && scratch.halves.len() == MODELS * IMAGES * halves);
    assert!(models.iter().all(|model| model.coordinates.len() + 1 == frame));
    for start in (0..batch).step_by(IMAGES) {
        let images = IMAGES.min(batch - start);
        for index in 0..images {
            let x = &x[(start + index) * image..][..image];
            first.maps(x, &mut scratch.maps[index * frame * map..][..frame * map], shape);
        }
        for (group, some) in models.chunks(MODELS).enumerate() {
            for index in 0..images {
                let maps = &scratch.maps[index * frame * map..][..frame * map];
                let into = &mut scratch.halves[index * halves..];
                // SAFETY: the processor was checked by whoever calls this; the lengths were checked above.
                unsafe {
                    match frame {
                        2 => combine::<1>(maps, some, into, IMAGES * halves, shape),
                        3 => combine::<2>(maps, some, into, IMAGES * halves, shape),
                        _ => unreachable!("lines and planes only"),
                    }
                }
            }
            for (number, model) in some.iter().enumerate() {
                for index in 0..images {
                    let from = &scratch.halves[(number * IMAGES + index) * halves..][..halves];
                    let to = ((group * MODELS + number) * batch + start + index) * each;
                    // SAFETY: as above.
                    unsafe {
                        transform(from, &mut scratch.points, shape);
                        convolve(&model.second, &scratch.points, &mut found[to..to + each], shape);
                    }
                }
            }
        }
    }
}

/// `Σ_d c_d map_d` of an image for each model, pooled; even columns and odd ones, a model's `stride` numbers behind the last one's.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn combine<const D: usize>(
    maps: &[f32],
    models: &[Model],
    halves: &mut [f32],
    stride: usize,
    shape: Shape,
) {
    let [height, width] = shape.convolved();
    let (pooled, half) = (shape.pooled(), shape.half());
    let (map, odd) = (shape.map(), shape.halves());
    assert!(maps.len() == (D + 1) * map && halves.len() >= (models.len() - 1) * stride + 2 * odd);
    // Windows 0, 2, … 14, then 1, 3, … 15: the left columns of each, and the right ones.
    let left = _mm512_set_epi32(30, 26, 22, 18, 14, 10, 6, 2, 28, 24, 20, 16, 12, 8, 4, 0);
    let right = _mm512_set_epi32(31, 27, 23, 19, 15, 11, 7, 3, 29, 25, 21, 17, 13, 9, 5, 1);
    let zero = _mm512_setzero_ps();
    for row in 0..shape.first[0] * pooled[0] {
        let from = (row / pooled[0] * height + row % pooled[0] * 2) * width;
        for window in (0..2 * half).step_by(LANES) {
            let column = 2 * window;
            let masks = [first_lanes(width - column), first_lanes((width - column).saturating_sub(LANES))];
            // Of two rows, two vectors each, of the frame.
            let mut seen = [[[zero; 2]; 2]; 3];
            for (d, seen) in seen.iter_mut().enumerate().take(D + 1) {
                for (lower, seen) in seen.iter_mut().enumerate() {
                    for (far, seen) in seen.iter_mut().enumerate() {
                        if masks[far] != 0 {
                            let at = d * map + from + lower * width + column + far * LANES;
                            // SAFETY: the mask ends with the row.
                            *seen = unsafe { _mm512_maskz_loadu_ps(masks[far], maps.as_ptr().add(at)) };
                        }
                    }
                }
            }
            let count = (half - window / 2).min(8);
            let mask = ((1u16 << count) - 1) as u8;
            let to = row * half + window / 2;
            for (number, model) in models.iter().enumerate() {
                let mut at = [zero; D];
                for (d, at) in at.iter_mut().enumerate() {
                    *at = _mm512_set1_ps(model.coordinates[d]);
                }
                let mut largest = [zero; 2];
                for (far, largest) in largest.iter_mut().enumerate() {
                    let mut sums = [seen[0][0][far], seen[0][1][far]];
                    for (lower, sum) in sums.iter_mut().enumerate() {
                        for d in 0..D {
                            *sum = _mm512_fmadd_ps(at[d], seen[d + 1][lower][far], *sum);
                        }
                    }
                    *largest = _mm512_max_ps(sums[0], sums[1]);
                }
                let mut found = _mm512_max_ps(
                    _mm512_permutex2var_ps(largest[0], left, largest[1]),
                    _mm512_permutex2var_ps(largest[0], right, largest[1]),
                );
                if shape.rectified[0] {
                    found = _mm512_max_ps(found, zero);
                }
                // SAFETY: `count` numbers from there lie within a model's part.
                unsafe {
                    let even = halves.as_mut_ptr().add(number * stride + to);
                    _mm256_mask_storeu_ps(even, mask, _mm512_castps512_ps256(found));
                    _mm256_mask_storeu_ps(even.add(odd), mask, upper_half(found));
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn upper_half(v: __m512) -> __m256 {
    _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)))
}

/// What Winograd's products take of the pooled rows: for each pair of columns six numbers, from it and the two pairs behind it. Along the
/// rows' ends it mixes them; nobody reads that.
#[target_feature(enable = "avx512f")]
unsafe fn transform(halves: &[f32], points: &mut [f32], shape: Shape) {
    let count = shape.halves();
    let stride = count + ROOM;
    assert!(halves.len() >= 2 * count + ROOM && points.len() == POINTS * stride);
    let [two, four, minus_four, minus_five] = [2., 4., -4., -5.].map(|x| _mm512_set1_ps(x));
    for at in (0..count).step_by(LANES) {
        // SAFETY: behind `count` there is room for more than a vector and two numbers, on both sides.
        unsafe {
            let load =
                |odd: usize, behind: usize| _mm512_loadu_ps(halves.as_ptr().add(odd * count + at + behind));
            let (d0, d2, d4) = (load(0, 0), load(0, 1), load(0, 2));
            let (d1, d3, d5) = (load(1, 0), load(1, 1), load(1, 2));
            // Even and odd parts at ±1, and at ±2.
            let even1 = _mm512_fmadd_ps(minus_four, d2, d4);
            let odd1 = _mm512_fmadd_ps(minus_four, d1, d3);
            let even2 = _mm512_sub_ps(d4, d2);
            let odd2 = _mm512_sub_ps(d3, d1);
            let found = [
                _mm512_fmadd_ps(four, d0, _mm512_fmadd_ps(minus_five, d2, d4)),
                _mm512_add_ps(even1, odd1),
                _mm512_sub_ps(even1, odd1),
                _mm512_fmadd_ps(two, odd2, even2),
                _mm512_fmadd_ps(_mm512_set1_ps(-2.), odd2, even2),
                _mm512_fmadd_ps(four, d1, _mm512_fmadd_ps(minus_five, d3, d5)),
            ];
            for (point, found) in found.iter().enumerate() {
                _mm512_storeu_ps(points.as_mut_ptr().add(point * stride + at), *found);
            }
        }
    }
}

/// Windows of a row whose sums are kept in registers together, two vectors each.
const WINDOWS: usize = 5;

/// The second block of an image.
#[target_feature(enable = "avx512f")]
unsafe fn convolve(second: &Second, points: &[f32], features: &mut [f32], shape: Shape) {
    let [rows, columns] = shape.windows();
    assert!(features.len() == shape.features() && points.len() == POINTS * (shape.halves() + ROOM));
    assert!(second.taps.len() == shape.groups() * POINTS * shape.first[0] * KERNEL * LANES);
    for group in 0..shape.groups() {
        for row in 0..rows {
            let mut column = 0;
            while column < columns {
                let into = &mut features[((group * rows + row) * columns + column) * LANES..];
                let place = [group, row, column];
                // SAFETY: the lengths were checked above.
                column += unsafe {
                    match columns - column {
                        WINDOWS.. => windows::<WINDOWS>(second, points, into, shape, place),
                        3.. => windows::<3>(second, points, into, shape, place),
                        _ => windows::<1>(second, points, into, shape, place),
                    }
                };
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn windows<const N: usize>(
    second: &Second,
    points: &[f32],
    into: &mut [f32],
    shape: Shape,
    [group, row, column]: [usize; 3],
) -> usize {
    let (inputs, height, half) = (shape.first[0], shape.pooled()[0], shape.half());
    let stride = shape.halves() + ROOM;
    assert!(into.len() >= N * LANES);
    let zero = _mm512_setzero_ps();
    // Zeros would be written for nothing.
    let mut products = [[[MaybeUninit::<__m512>::uninit(); N]; 2]; POINTS];
    // SAFETY: row `2 row + 1 + 4` is one of the pooled ones, and `column + N` windows are there.
    unsafe {
        for (point, products) in products.iter_mut().enumerate() {
            let mut sums = [[zero; N]; 2];
            for input in 0..inputs {
                let tap = (group * POINTS + point) * inputs + input;
                let taps = second.taps.as_ptr().add(tap * KERNEL * LANES);
                let from = points.as_ptr().add(point * stride + (input * height + 2 * row) * half + column);
                for ky in 0..KERNEL {
                    let w = _mm512_loadu_ps(taps.add(ky * LANES));
                    for (lower, sums) in sums.iter_mut().enumerate() {
                        for (n, sum) in sums.iter_mut().enumerate() {
                            let x = _mm512_set1_ps(*from.add((ky + lower) * half + n));
                            *sum = _mm512_fmadd_ps(w, x, *sum);
                        }
                    }
                }
            }
            // By loops: closures of `map` may not be inlined into a function with more of the processor's features.
            for (products, sums) in products.iter_mut().zip(&sums) {
                for (product, sum) in products.iter_mut().zip(sums) {
                    product.write(*sum);
                }
            }
        }
        let two = _mm512_set1_ps(2.);
        let bias = _mm512_loadu_ps(second.bias.as_ptr().add(group * LANES));
        #[allow(clippy::needless_range_loop)] // of an inner index
        for n in 0..N {
            let mut largest = [zero; 2];
            for (lower, largest) in largest.iter_mut().enumerate() {
                let at = |point: usize| products[point][lower][n].assume_init();
                let (sum1, difference1) = (_mm512_add_ps(at(1), at(2)), _mm512_sub_ps(at(1), at(2)));
                let (sum2, difference2) = (_mm512_add_ps(at(3), at(4)), _mm512_sub_ps(at(3), at(4)));
                let left = _mm512_add_ps(at(0), _mm512_add_ps(sum1, sum2));
                let right = _mm512_fmadd_ps(two, difference2, _mm512_add_ps(difference1, at(5)));
                *largest = _mm512_max_ps(left, right);
            }
            let mut found = _mm512_add_ps(bias, _mm512_max_ps(largest[0], largest[1]));
            if shape.rectified[1] {
                found = _mm512_max_ps(found, zero);
            }
            _mm512_storeu_ps(into.as_mut_ptr().add(n * LANES), found);
        }
    }
    N
}
