//! A writer: the habits that all the digits of one hand have in common.
//!
//! Only `+ - * / sqrt` and comparisons are used here and in the drawing, and every one of these is exact to
//! the last bit under IEEE 754: the same seed gives the same bytes on every 64-bit platform and at every
//! optimisation level. (`sin`, `exp` and `ln` would not: they come from the platform's libm.)

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::skeletons::{FORMS, Form};

/// The most points that any form has: each writer keeps one shift for each.
pub(super) const MAX_POINTS: usize = 24;

/// Roughly normal with mean 0 and standard deviation 1, bounded by ±3.46: the sum of four uniforms
/// (Irwin–Hall).
pub(super) fn bell(rng: &mut ChaCha8Rng) -> f32 {
    let sum: f32 = (0..4).map(|_| rng.r#gen::<f32>()).sum();
    (sum - 2.0) * 1.732_050_8
}

/// An index drawn with the given weights.
fn weighted(forms: &[Form], rng: &mut ChaCha8Rng) -> usize {
    let total: f32 = forms.iter().map(|form| form.weight).sum();
    let mut left = rng.r#gen::<f32>() * total;
    for (index, form) in forms.iter().enumerate() {
        left -= form.weight;
        if left < 0.0 {
            return index;
        }
    }
    forms.len() - 1
}

/// A smooth displacement of the plane: in each axis the terms of second and third degree in (x, y), over [-1,
/// 1]². The terms of first degree are left to slant, rotation and aspect.
#[derive(Clone, Copy)]
pub(super) struct Warp {
    terms: [[f32; 7]; 2],
}

impl Warp {
    /// A random warp whose every term has about the given size, in boxes.
    pub fn random(size: f32, rng: &mut ChaCha8Rng) -> Self {
        let mut terms = [[0.0; 7]; 2];
        terms.iter_mut().flatten().for_each(|term| *term = size * bell(rng));
        Self { terms }
    }

    /// Where (x, y), from the centre of the digit's box, is moved to.
    pub fn apply(&self, x: f32, y: f32) -> (f32, f32) {
        let (u, v) = (2.0 * x, 2.0 * y);
        let basis = [u * u, u * v, v * v, u * u * u, u * u * v, u * v * v, v * v * v];
        let along = |terms: &[f32; 7]| terms.iter().zip(&basis).map(|(t, b)| t * b).sum::<f32>();
        (x + along(&self.terms[0]), y + along(&self.terms[1]))
    }
}

/// One digit of one writer: the form, and the writer's own shape of it.
pub(super) struct Habit {
    /// Which of the digit's forms the writer uses.
    pub form: usize,
    /// The writer's shift of each point of the form, in boxes.
    pub shifts: [(f32, f32); MAX_POINTS],
    /// The writer's proportions of this digit.
    pub warp: Warp,
}

/// What stays the same through everything that one person writes.
pub(super) struct Writer {
    /// The habits, by digit.
    pub habits: Vec<Habit>,
    /// Shear: how far the top leans to the right, per height.
    pub slant: f32,
    /// Width of the hand, relative to the skeletons.
    pub aspect: f32,
    /// Pen width, in pixels of the 28x28 image.
    pub pen: f32,
    /// How far corners are rounded, 0 to 1.
    pub roundness: f32,
    /// Unsteadiness: standard deviation of each point from one digit to the next, in boxes.
    pub jitter: f32,
    /// How strongly the pressure changes along a stroke, 0 to 1.
    pub pressure: f32,
    /// How bright the ink is, 0 to 1.
    pub ink: f32,
}

impl Writer {
    /// Writer number `number` of the data set with seed `seed`; each has a random stream of its own.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1 + number);
        let rng = &mut rng;
        let habits = FORMS
            .iter()
            .map(|forms| {
                let mut shifts = [(0.0, 0.0); MAX_POINTS];
                for shift in &mut shifts {
                    *shift = (POINT_HABIT * bell(rng), POINT_HABIT * bell(rng));
                }
                Habit { form: weighted(forms, rng), shifts, warp: Warp::random(WARP_HABIT, rng) }
            })
            .collect();
        Self {
            habits,
            slant: 0.12 + 0.22 * bell(rng),
            aspect: (0.92 + 0.14 * bell(rng)).clamp(0.62, 1.3),
            pen: (2.6 + 0.55 * bell(rng)).clamp(1.3, 4.0),
            roundness: rng.r#gen(),
            jitter: JITTER * (0.6 + 0.8 * rng.r#gen::<f32>()),
            pressure: 0.3 * rng.r#gen::<f32>(),
            ink: 1.0 - 0.12 * rng.r#gen::<f32>(),
        }
    }

    /// The form for this time: mostly the writer's own, now and then another.
    pub fn form(&self, digit: usize, rng: &mut ChaCha8Rng) -> usize {
        if rng.r#gen::<f32>() < OTHER_FORM { weighted(FORMS[digit], rng) } else { self.habits[digit].form }
    }
}

// Set by training on the result (figures in `digits.rs`) and by looking at it.
/// Standard deviation of a writer's own shift of each point, in boxes.
const POINT_HABIT: f32 = 0.032;
/// Size of each term of a writer's own proportions of a digit, in boxes.
const WARP_HABIT: f32 = 0.045;
/// Mean unsteadiness from one digit to the next, in boxes.
const JITTER: f32 = 0.021;
/// How often a writer leaves the usual form.
const OTHER_FORM: f32 = 0.08;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_a_shift_for_each_point() {
        for form in FORMS.iter().flat_map(|forms| forms.iter()) {
            assert!(form.strokes.iter().map(|stroke| stroke.len()).sum::<usize>() <= MAX_POINTS);
            assert!(form.strokes.iter().all(|stroke| stroke.len() >= 2));
        }
    }

    #[test]
    fn the_bell_has_mean_0_and_deviation_1() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws: Vec<f64> = (0..20_000).map(|_| f64::from(bell(&mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
    }
}
