//! What several seeds together say. It knows nothing of networks: numbers in, numbers out.
//!
//! A [`Claim`] is written down before the data, with the [`Rule`] by which the values of the seeds, one each, decide it at
//! the level of 95 % ([`LEVEL`]); [`Claim::judge`] gives the verdict. [`Pca`] and the functions beside it look at where models lie
//! in their space.

mod claim;
mod interval;
mod kendall;
mod pca;
mod rank;
mod similarity;

pub use claim::{Claim, LEVEL, Outcome, Rule, Verdict};
pub use interval::{
    Interval, bootstrap_interval, geometric_mean_interval, mean_interval, median, median_interval, quantile,
    share_interval,
};
pub use kendall::{Granulated, granulated_kendall, kendall, kendall_interval};
pub use pca::{Pca, PcaError, Solver};
pub use rank::{rank_correlation, rank_products};
pub use similarity::{cosine, cosines, distance, distances};
