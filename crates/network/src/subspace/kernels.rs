//! Two blocks of convolution and pooling and a tail of dense layers, image by image and model by model, on a CPU with AVX-512.
//!
//! The first block's convolution is a combination of those of the frame ([`super`]), pooled in registers. The second, of 5x5, is Winograd's
//! F(2x2, 5x5): four outputs, a window of the pooling, by 36 products instead of 100 (Winograd 1980, "Arithmetic complexity of
//! computations"; Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"), at the points 0, ±1, ±2 and ∞ along rows and
//! columns. On random numbers in f32 its error is 8e-7 of the outputs' deviation, that of the plain sum 2e-7.

use crate::block;
use std::arch::x86_64::{
    __m256, __m512, _mm256_castpd_ps, _mm256_mask_storeu_ps, _mm512_add_ps, _mm512_castps_pd,
    _mm512_castps512_ps256, _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_load_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_compress_ps, _mm512_maskz_loadu_ps, _mm512_max_ps,
    _mm512_permutex2var_ps, _mm512_set_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_store_ps,
    _mm512_storeu_ps, _mm512_sub_ps,
};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};

/// Numbers of a vector.
pub const LANES: usize = 16;
/// The side of the second block's kernel.
pub const KERNEL: usize = 5;
/// Points at which Winograd's products are taken.
const POINTS: usize = KERNEL + 1;
/// What may be read behind the last row.
const ROOM: usize = 2 * LANES;

/// Numbers in whole vectors that begin where a line of the cache does, so that none is loaded or stored in two parts.
#[derive(Debug)]
struct Aligned(Vec<Vector>);

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Vector([f32; LANES]);

impl Aligned {
    /// So many zeros, up to whole vectors.
    fn zeros(count: usize) -> Self {
        Self(vec![Vector([0.; LANES]); count.div_ceil(LANES)])
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a vector is 16 numbers and nothing else.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LANES) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LANES) }
    }
}

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

    /// How many even (or odd) columns of a pooled row the second convolution reads.
    fn half(self) -> usize {
        self.windows()[1] + KERNEL / 2
    }

    /// Room for the even (or odd) columns of a row of all channels, in whole vectors.
    fn wide(self) -> usize {
        (self.first[0] * self.half()).next_multiple_of(LANES)
    }

    /// Room for the windows of a row of all channels, in whole vectors.
    fn narrow(self) -> usize {
        (self.first[0] * self.windows()[1]).next_multiple_of(LANES)
    }

    /// The numbers of a row that a window begins with, in each vector of `wide`, and how many come before that vector.
    fn kept(self) -> Vec<(u16, usize)> {
        let (half, columns) = (self.half(), self.windows()[1]);
        let begins = |at: usize| at < self.first[0] * half && at % half < columns;
        let mut before = 0;
        let of_vector = |start: usize| {
            let lanes = (0..LANES).filter(|lane| begins(start + lane));
            let mask = lanes.fold(0u16, |mask, lane| mask | 1 << lane);
            before += mask.count_ones() as usize;
            (mask, before - mask.count_ones() as usize)
        };
        (0..self.wide()).step_by(LANES).map(of_vector).collect()
    }

    /// Pooled rows that the second convolution reads.
    fn rows(self) -> usize {
        2 * self.windows()[0] + KERNEL - 1
    }

    /// Numbers of an image between the blocks: `[rows, 2, wide]`, and what may be read behind them.
    fn halves(self) -> usize {
        self.rows() * 2 * self.wide() + ROOM
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

/// A model's second convolution at the points: `[groups, POINTS, C, POINTS, 16]`, those along a row first; and its bias `[groups, 16]`.
#[derive(Debug)]
pub struct Second {
    taps: Aligned,
    bias: Aligned,
}

impl Second {
    /// From `[O, C, 5, 5]` and `[O]`.
    pub fn of(weight: &[f32], bias: &[f32], shape: Shape) -> Self {
        let (inputs, groups) = (shape.first[0], shape.groups());
        assert!(weight.len() == shape.second * inputs * KERNEL * KERNEL && bias.len() == shape.second);
        let mut taps = Aligned::zeros(groups * POINTS * inputs * POINTS * LANES);
        for (channel, weight) in weight.chunks_exact(KERNEL * KERNEL).enumerate() {
            let (output, input) = (channel / inputs, channel % inputs);
            let mut columns = [[0.; KERNEL]; POINTS];
            for (row, weight) in weight.chunks_exact(KERNEL).enumerate() {
                let values = at_points(std::array::from_fn(|column| f64::from(weight[column])));
                for (column, value) in columns.iter_mut().zip(values) {
                    column[row] = value;
                }
            }
            for (point, column) in columns.into_iter().enumerate() {
                for (row, value) in at_points(column).into_iter().enumerate() {
                    let place = ((output / LANES * POINTS + point) * inputs + input) * POINTS + row;
                    taps[place * LANES + output % LANES] = value as f32;
                }
            }
        }
        let mut wide = Aligned::zeros(groups * LANES);
        wide[..bias.len()].copy_from_slice(bias);
        Self { taps, bias: wide }
    }
}

/// A row or column of the kernel as a polynomial, at 0, ±1, ±2 and ∞, with the denominators of the interpolation.
fn at_points(g: [f64; KERNEL]) -> [f64; POINTS] {
    let at = |x: f64, denominator: f64| g.iter().rev().fold(0., |sum, g| sum * x + g) / denominator;
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
    weight: Aligned,
    bias: Aligned,
    inputs: usize,
}

impl Dense {
    /// From `[outputs, F]` and `[outputs]`; `place` says where among `inputs` each of the F lies.
    pub fn of(weight: &[f32], bias: &[f32], inputs: usize, place: impl Fn(usize) -> usize) -> Self {
        let (outputs, wide) = (bias.len(), bias.len().next_multiple_of(LANES));
        let each = weight.len() / outputs;
        let mut packed = Aligned::zeros(inputs * wide);
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
        let mut padded = Aligned::zeros(wide);
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
    /// `[models, images, rows, 2, wide]`, even columns and odd ones.
    halves: Aligned,
    /// At the points along the rows, of as many rows as a window needs: `[POINTS, POINTS, narrow + 16]`.
    along: Aligned,
    /// Of a row of windows at those along the columns, too: `[POINTS, POINTS, narrow]`.
    points: Aligned,
    /// Of each vector of `wide`, what belongs to a window, and its place in `narrow`.
    kept: Vec<(u16, usize)>,
}

/// Images that go through the first two blocks together, and models: what lies between them stays in the second-level cache.
const IMAGES: usize = 4;
const MODELS: usize = 16;

impl Scratch {
    pub fn new(shape: Shape, dimensions: usize) -> Self {
        Self {
            maps: vec![0.; IMAGES * (dimensions + 1) * shape.map()],
            halves: Aligned::zeros(MODELS * IMAGES * shape.halves()),
            along: Aligned::zeros(POINTS * POINTS * (shape.narrow() + LANES)),
            points: Aligned::zeros(POINTS * POINTS * shape.narrow()),
            kept: shape.kept(),
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
    let halves = shape.halves();
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
                        let room = (scratch.kept.as_slice(), &mut scratch.along, &mut scratch.points);
                        convolve(&model.second, from, room, &mut found[to..to + each], shape);
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
    let (rows, half, wide) = (shape.rows(), shape.half(), shape.wide());
    let map = shape.map();
    assert!(maps.len() == (D + 1) * map && halves.len() >= (models.len() - 1) * stride + shape.halves());
    // Windows 0, 2, … 14, then 1, 3, … 15: the left columns of each, and the right ones.
    let left = _mm512_set_epi32(30, 26, 22, 18, 14, 10, 6, 2, 28, 24, 20, 16, 12, 8, 4, 0);
    let right = _mm512_set_epi32(31, 27, 23, 19, 15, 11, 7, 3, 29, 25, 21, 17, 13, 9, 5, 1);
    let zero = _mm512_setzero_ps();
    for line in 0..shape.first[0] * rows {
        let (channel, row) = (line / rows, line % rows);
        let from = (channel * height + row * 2) * width;
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
            let to = row * 2 * wide + channel * half + window / 2;
            // Along a row of a grid only the first coordinate changes: the sum of the others' part stays.
            let (mut sums, mut known) = (seen[0], None);
            for (number, model) in models.iter().enumerate() {
                if D == 2 && known != Some(model.coordinates[1].to_bits()) {
                    known = Some(model.coordinates[1].to_bits());
                    let at = _mm512_set1_ps(model.coordinates[1]);
                    for lower in 0..2 {
                        for far in 0..2 {
                            sums[lower][far] = _mm512_fmadd_ps(at, seen[2][lower][far], seen[0][lower][far]);
                        }
                    }
                }
                let at = _mm512_set1_ps(model.coordinates[0]);
                let mut largest = [zero; 2];
                for (far, largest) in largest.iter_mut().enumerate() {
                    let upper = _mm512_fmadd_ps(at, seen[1][0][far], sums[0][far]);
                    let lower = _mm512_fmadd_ps(at, seen[1][1][far], sums[1][far]);
                    *largest = _mm512_max_ps(upper, lower);
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
                    _mm256_mask_storeu_ps(even.add(wide), mask, upper_half(found));
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn upper_half(v: __m512) -> __m256 {
    _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)))
}

/// What Winograd's products take of six numbers, of vectors of them.
#[target_feature(enable = "avx512f")]
fn transform(d: &[__m512; POINTS]) -> [__m512; POINTS] {
    let [two, minus_two, four, minus_four, minus_five] = [
        _mm512_set1_ps(2.),
        _mm512_set1_ps(-2.),
        _mm512_set1_ps(4.),
        _mm512_set1_ps(-4.),
        _mm512_set1_ps(-5.),
    ];
    // Even and odd parts at ±1, and at ±2.
    let even1 = _mm512_fmadd_ps(minus_four, d[2], d[4]);
    let odd1 = _mm512_fmadd_ps(minus_four, d[1], d[3]);
    let even2 = _mm512_sub_ps(d[4], d[2]);
    let odd2 = _mm512_sub_ps(d[3], d[1]);
    [
        _mm512_fmadd_ps(four, d[0], _mm512_fmadd_ps(minus_five, d[2], d[4])),
        _mm512_add_ps(even1, odd1),
        _mm512_sub_ps(even1, odd1),
        _mm512_fmadd_ps(two, odd2, even2),
        _mm512_fmadd_ps(minus_two, odd2, even2),
        _mm512_fmadd_ps(four, d[1], _mm512_fmadd_ps(minus_five, d[3], d[5])),
    ]
}

/// Two outputs from the products at the points.
#[target_feature(enable = "avx512f")]
fn outputs(p: &[__m512; POINTS]) -> [__m512; 2] {
    let (sum1, difference1) = (_mm512_add_ps(p[1], p[2]), _mm512_sub_ps(p[1], p[2]));
    let (sum2, difference2) = (_mm512_add_ps(p[3], p[4]), _mm512_sub_ps(p[3], p[4]));
    let first = _mm512_add_ps(p[0], _mm512_add_ps(sum1, sum2));
    [first, _mm512_fmadd_ps(_mm512_set1_ps(2.), difference2, _mm512_add_ps(difference1, p[5]))]
}

/// Windows of a row whose products along a column are kept in registers together.
const WINDOWS: usize = 5;

/// The second block of an image.
#[target_feature(enable = "avx512f")]
unsafe fn convolve(
    second: &Second,
    halves: &[f32],
    (kept, along, points): (&[(u16, usize)], &mut Aligned, &mut Aligned),
    features: &mut [f32],
    shape: Shape,
) {
    let ([rows, columns], wide, narrow) = (shape.windows(), shape.wide(), shape.narrow());
    let stride = narrow + LANES;
    assert!(features.len() == shape.features() && halves.len() == shape.halves());
    assert!(kept.len() == wide / LANES && kept.iter().all(|&(_, place)| place <= narrow));
    assert!(along.len() == POINTS * POINTS * stride && points.len() == POINTS * POINTS * narrow);
    assert!(second.taps.len() == shape.groups() * POINTS * shape.first[0] * POINTS * LANES);
    assert!(second.bias.len() == shape.groups() * LANES);
    // Of the six rows that are there, where one is.
    let place = |row: usize| row % POINTS * POINTS * stride;
    let fill = |along: &mut [f32], rows: Range<usize>| {
        for row in rows {
            let even = &halves[row * 2 * wide..][..2 * wide + ROOM];
            along_row(even, kept, &mut along[place(row)..][..POINTS * stride]);
        }
    };
    fill(along, 0..POINTS);
    for row in 0..rows {
        for point in 0..POINTS {
            for at in (0..narrow).step_by(LANES) {
                // SAFETY: the lengths were checked above; all places are multiples of a vector, in what is aligned.
                unsafe {
                    let mut d = [_mm512_setzero_ps(); POINTS];
                    for (index, d) in d.iter_mut().enumerate() {
                        *d = _mm512_load_ps(along.as_ptr().add(place(2 * row + index) + point * stride + at));
                    }
                    for (column, found) in transform(&d).into_iter().enumerate() {
                        let to = (point * POINTS + column) * narrow + at;
                        _mm512_store_ps(points.as_mut_ptr().add(to), found);
                    }
                }
            }
        }
        // Those of the next windows, well before they are read.
        if row + 1 < rows {
            fill(along, 2 * row + POINTS..2 * row + POINTS + 2);
        }
        for group in 0..shape.groups() {
            let mut column = 0;
            while column < columns {
                let into = &mut features[((group * rows + row) * columns + column) * LANES..];
                let place = [group, column];
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

/// A row at the points along it: of each pair of columns six numbers, from it and the two pairs behind it, where a window begins there.
#[target_feature(enable = "avx512f")]
fn along_row(halves: &[f32], kept: &[(u16, usize)], along: &mut [f32]) {
    let (wide, stride) = (kept.len() * LANES, along.len() / POINTS);
    assert!(halves.len() == 2 * wide + ROOM);
    for (vector, &(mask, place)) in kept.iter().enumerate() {
        assert!(place + LANES <= stride);
        // SAFETY: there is room for two numbers behind the last; the place was checked above.
        unsafe {
            let even = halves.as_ptr().add(vector * LANES);
            let mut d = [_mm512_setzero_ps(); POINTS];
            for (index, d) in d.iter_mut().enumerate() {
                *d = _mm512_loadu_ps(even.add(index % 2 * wide + index / 2));
            }
            for (point, found) in transform(&d).into_iter().enumerate() {
                // What is written behind those kept is overwritten by the next, or read by nobody.
                let to = along.as_mut_ptr().add(point * stride + place);
                _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, found));
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
    [group, column]: [usize; 2],
) -> usize {
    let (inputs, columns, narrow) = (shape.first[0], shape.windows()[1], shape.narrow());
    assert!(into.len() >= N * LANES);
    let zero = _mm512_setzero_ps();
    // Of each point along the rows, two rows of outputs. Zeros would be written for nothing.
    let mut found = [[[MaybeUninit::<__m512>::uninit(); N]; 2]; POINTS];
    // SAFETY: `column + N` windows are there.
    unsafe {
        for (point, found) in found.iter_mut().enumerate() {
            let mut sums = [[zero; N]; POINTS];
            for input in 0..inputs {
                let tap = ((group * POINTS + point) * inputs + input) * POINTS;
                let taps = second.taps.as_ptr().add(tap * LANES);
                let from = points.as_ptr().add(point * POINTS * narrow + input * columns + column);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let w = _mm512_loadu_ps(taps.add(row * LANES));
                    for (n, sum) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*from.add(row * narrow + n));
                        *sum = _mm512_fmadd_ps(w, x, *sum);
                    }
                }
            }
            // By loops: closures of `map` may not be inlined into a function with more of the processor's features.
            for n in 0..N {
                let two = outputs(&[sums[0][n], sums[1][n], sums[2][n], sums[3][n], sums[4][n], sums[5][n]]);
                found[0][n].write(two[0]);
                found[1][n].write(two[1]);
            }
        }
        let bias = _mm512_loadu_ps(second.bias.as_ptr().add(group * LANES));
        for n in 0..N {
            let mut largest = [zero; 2];
            for (lower, largest) in largest.iter_mut().enumerate() {
                let mut products = [zero; POINTS];
                for (product, found) in products.iter_mut().zip(&found) {
                    *product = found[lower][n].assume_init();
                }
                let [left, right] = outputs(&products);
                *largest = _mm512_max_ps(left, right);
            }
            let mut most = _mm512_add_ps(bias, _mm512_max_ps(largest[0], largest[1]));
            if shape.rectified[1] {
                most = _mm512_max_ps(most, zero);
            }
            _mm512_storeu_ps(into.as_mut_ptr().add(n * LANES), most);
        }
    }
    N
}
