//! The whole spectrum as a density, by stochastic Lanczos quadrature (Ghorbani, Krishnan and Xiao 2019, "An investigation into neural net
//! optimization via Hessian eigenvalue density"; Golub and Welsch 1969).
//!
//! For a random v with `E v vᵀ = I / P`, `vᵀ δ(λ - A) v` has the spectral density `φ(λ) = 1/P Σ δ(λ - λ_i)` as its mean. m steps of Lanczos from
//! v give a tridiagonal T whose eigenvalues θ_j, with the weights `τ_j = (first entry of its j-th eigenvector)²`, are the m-point Gauss
//! quadrature of it: exact for polynomials of degree up to 2m - 1. For drawing, every node is widened to a Gaussian.

use crate::operator::{CurvatureError, Symmetric};
use crate::probe::gaussian;
use tch::{Device, Kind, Tensor};

/// Nodes and weights of one probe; the weights sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Quadrature {
    /// θ, ascending.
    pub nodes: Vec<f64>,
    /// τ.
    pub weights: Vec<f64>,
}

impl Quadrature {
    /// `1/P Σ f(λ_i)`, about.
    pub fn mean(&self, f: impl Fn(f64) -> f64) -> f64 {
        self.nodes.iter().zip(&self.weights).map(|(&node, weight)| weight * f(node)).sum()
    }

    /// The share of eigenvalues below `-threshold`.
    pub fn negative_share(&self, threshold: f64) -> f64 {
        self.mean(|node| f64::from(u8::from(node < -threshold)))
    }

    /// `Σ_{λ<0} |λ| / Σ |λ|`: how much of the curvature's mass is negative.
    pub fn negative_mass(&self) -> f64 {
        self.mean(|node| (-node).max(0.)) / self.mean(f64::abs).max(f64::MIN_POSITIVE)
    }

    /// The density at λ with every node widened to a Gaussian of this standard deviation.
    pub fn density(&self, lambda: f64, width: f64) -> f64 {
        let scale = 1. / (width * (2. * std::f64::consts::PI).sqrt());
        self.mean(|node| scale * (-0.5 * ((lambda - node) / width).powi(2)).exp())
    }
}

/// How it is estimated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DensitySettings {
    /// Random vectors.
    pub probes: usize,
    /// m, Lanczos steps of each.
    pub steps: usize,
    /// Of the vectors.
    pub seed: u64,
}

/// Probes that go side by side: their bases, `[probes, m, P]`, are kept.
const TOGETHER: usize = 8;

/// One quadrature a probe. Lanczos with full reorthogonalisation; a probe whose Krylov space is exhausted ends early. `observe` is given the
/// number of products so far; when it says false, [`CurvatureError::Stopped`] is returned.
///
/// # Errors
/// [`CurvatureError::Count`] for no probe or step, and those of the products.
pub fn spectral_density(
    operator: &dyn Symmetric,
    settings: DensitySettings,
    observe: &dyn Fn(usize) -> bool,
) -> Result<Vec<Quadrature>, CurvatureError> {
    let DensitySettings { probes, steps, seed } = settings;
    for (what, found) in [("the number of probes", probes), ("the number of steps", steps)] {
        if found < 1 {
            return Err(CurvatureError::Count { what, expected: "at least 1".into(), found });
        }
    }
    let mut all = Vec::with_capacity(probes);
    let mut products = 0;
    let count = probes.div_ceil(TOGETHER);
    for some in 0..count {
        // Even shares: a pass over the data costs most of what a full one does.
        let size = probes * (some + 1) / count - probes * some / count;
        let quadratures =
            quadratures(operator, size, steps, (seed, some as u32), &|more| observe(products + more))?;
        products += quadratures.1;
        all.extend(quadratures.0);
    }
    Ok(all)
}

/// Of probes side by side, and how many products that took.
fn quadratures(
    operator: &dyn Symmetric,
    probes: usize,
    steps: usize,
    (seed, draw): (u64, u32),
    observe: &dyn Fn(usize) -> bool,
) -> Result<(Vec<Quadrature>, usize), CurvatureError> {
    let (kind, device) = operator.options();
    let dimension = operator.dimension() as usize;
    let steps = steps.min(dimension);
    let start = gaussian(seed, draw, probes, dimension, device)?;
    let norms = start.f_norm_scalaropt_dim(2., [1i64], true)?;
    let mut v = start.f_div(&norms)?.f_to_kind(kind)?;
    // `[probes, m, P]`, in the operator's own precision: what takes the memory.
    let basis = Tensor::f_zeros([probes as i64, steps as i64, dimension as i64], (kind, device))?;
    let (mut diagonals, mut beside) = (vec![Vec::new(); probes], vec![Vec::new(); probes]);
    let mut open = vec![true; probes];
    let mut products = 0;
    for step in 0..steps {
        basis.f_select(1, step as i64)?.f_copy_(&v)?;
        let image = operator.products(&v)?;
        products += probes;
        if !observe(products) {
            return Err(CurvatureError::Stopped);
        }
        let alpha = image.f_mul(&v)?.f_sum_dim_intlist(Some([1i64].as_slice()), false, Kind::Double)?;
        let alpha: Vec<f64> = Vec::try_from(alpha)?;
        let seen = basis.f_narrow(1, 0, step as i64 + 1)?;
        let mut rest = image.f_unsqueeze(1)?;
        for _ in 0..2 {
            let within = rest.f_bmm(&seen.f_transpose(1, 2)?)?;
            rest = rest.f_sub(&within.f_bmm(&seen)?)?;
        }
        let rest = rest.f_squeeze_dim(1)?;
        let beta: Vec<f64> =
            Vec::try_from(rest.f_to_kind(Kind::Double)?.f_norm_scalaropt_dim(2., [1i64], false)?)?;
        let mut scales = vec![0.; probes];
        for probe in 0..probes {
            if !open[probe] {
                continue;
            }
            diagonals[probe].push(alpha[probe]);
            let scale = diagonals[probe]
                .iter()
                .chain(&beside[probe])
                .fold(0f64, |most: f64, x: &f64| most.max(x.abs()));
            let rounding = if kind == Kind::Double { 1e-12 } else { 1e-5 };
            // What is left is rounding: the Krylov space is exhausted.
            open[probe] = beta[probe] > rounding * scale;
            if open[probe] && step + 1 < steps {
                beside[probe].push(beta[probe]);
                scales[probe] = 1. / beta[probe];
            }
        }
        if !open.iter().any(|&open| open) {
            break;
        }
        let scales = Tensor::f_from_slice(&scales)?.f_to_device(device)?.f_to_kind(kind)?.f_unsqueeze(1)?;
        v = rest.f_mul(&scales)?;
    }
    let found = diagonals.iter().zip(&beside).map(|(diagonal, beside)| quadrature(diagonal, beside));
    Ok((found.collect::<Result<_, _>>()?, products))
}

/// Golub and Welsch's: nodes and weights of a tridiagonal matrix.
fn quadrature(diagonal: &[f64], beside: &[f64]) -> Result<Quadrature, CurvatureError> {
    let beside = &beside[..diagonal.len() - 1];
    let mut matrix = Tensor::f_from_slice(diagonal)?.f_diag(0)?;
    if !beside.is_empty() {
        let off = Tensor::f_from_slice(beside)?;
        matrix = matrix.f_add(&off.f_diag(1)?)?.f_add(&off.f_diag(-1)?)?;
    }
    let (nodes, vectors) = matrix.f_to_device(Device::Cpu)?.f_linalg_eigh("L")?;
    let weights = vectors.f_select(0, 0)?.f_square()?;
    Ok(Quadrature { nodes: Vec::try_from(nodes)?, weights: Vec::try_from(weights)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::Matrix;

    fn matrix(values: &[f64]) -> Matrix {
        let count = values.len();
        let (q, _) = Tensor::linalg_qr(&gaussian(3, 9, count, count, Device::Cpu).unwrap(), "reduced");
        Matrix(q.matmul(&Tensor::from_slice(values).diag(0)).matmul(&q.tr()))
    }

    /// m nodes integrate `vᵀ A^k v` exactly for k up to 2m - 1.
    #[test]
    fn moments_are_exact() {
        let a = matrix(&(0..50).map(|k| (f64::from(k) * 0.7).sin()).collect::<Vec<_>>());
        let settings = DensitySettings { probes: 3, steps: 6, seed: 1 };
        let found = spectral_density(&a, settings, &|_| true).unwrap();
        let v = gaussian(1, 0, 3, 50, Device::Cpu).unwrap();
        for (probe, quadrature) in found.iter().enumerate() {
            let v = v.get(probe as i64);
            let v = &v / v.norm();
            let mut power = v.copy();
            for k in 0..12 {
                let expected = v.dot(&power).double_value(&[]);
                let moment = quadrature.mean(|node| node.powi(k));
                assert!((moment - expected).abs() < 1e-12, "{k}: {moment} {expected}");
                power = a.0.mv(&power);
            }
        }
    }

    /// With as many steps as there are eigenvalues, the nodes are these.
    #[test]
    fn all_steps_find_all_eigenvalues() {
        let values: Vec<f64> = (0..12).map(|k| f64::from(k).powi(2) - 20.).collect();
        let settings = DensitySettings { probes: 2, steps: 40, seed: 1 };
        for Quadrature { nodes, weights } in spectral_density(&matrix(&values), settings, &|_| true).unwrap()
        {
            assert_eq!(nodes.len(), 12);
            assert!(nodes.iter().zip(&values).all(|(node, value)| (node - value).abs() < 1e-8));
            assert!((weights.iter().sum::<f64>() - 1.).abs() < 1e-12);
        }
    }

    #[test]
    fn shares_of_a_known_spectrum() {
        let values: Vec<f64> = (0..200).map(|k| if k < 50 { -1. } else { 3. }).collect();
        let settings = DensitySettings { probes: 64, steps: 20, seed: 0 };
        let found = spectral_density(&matrix(&values), settings, &|_| true).unwrap();
        // Two different eigenvalues: each Krylov space has two dimensions.
        assert!(found.iter().all(|one| one.nodes.len() == 2));
        let mean = |f: &dyn Fn(&Quadrature) -> f64| found.iter().map(f).sum::<f64>() / 64.;
        assert!((mean(&|one| one.negative_share(1e-6)) - 0.25).abs() < 0.02);
        assert!((mean(&|one| one.negative_mass()) - 0.1).abs() < 0.01);
        let quadrature = &found[0];
        let integral: f64 = (-400..800).map(|k| 0.01 * quadrature.density(0.01 * f64::from(k), 0.1)).sum();
        assert!((integral - 1.).abs() < 1e-6);
        assert!(matches!(
            spectral_density(&matrix(&values), settings, &|_| false),
            Err(CurvatureError::Stopped)
        ));
        let none = DensitySettings { probes: 0, ..settings };
        assert!(spectral_density(&matrix(&values), none, &|_| true).is_err());
    }
}
