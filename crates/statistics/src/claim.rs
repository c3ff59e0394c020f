//! Claims that are fixed before the data, and what the data say of them.

use std::fmt;

use crate::{mean_interval, median, median_interval, share_interval};

/// Level of the intervals that decide: 95 %.
///
/// Where a threshold is the truth, about one claim in twenty is thus supported or contradicted by chance.
pub const LEVEL: f64 = 0.95;

/// Something that can turn out wrong, with the rule that decides it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim {
    /// Short name, for tables and files.
    pub id: &'static str,
    /// What is claimed, in one sentence.
    pub statement: &'static str,
    /// Whose claim it is: "report", "notebook", a paper, or "Flatland".
    pub source: &'static str,
    /// What the value of one seed is, with its unit.
    pub statistic: &'static str,
    /// How the values of the seeds decide.
    pub rule: Rule,
}

/// How the values of independent seeds, one each, decide a claim, at the level [`LEVEL`].
///
/// An interval decides only where all of it, ends included, lies strictly on one side of a threshold. Thresholds have the
/// unit of the statistic; shares lie in [0, 1]. `Display` says the rule in a sentence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// The mean is above the threshold, by Student's t interval ([`mean_interval`]).
    MeanAbove(f64),
    /// The mean is below the threshold, by Student's t interval.
    MeanBelow(f64),
    /// The mean is between the thresholds, the lower first, by Student's t interval: a test of equivalence.
    MeanWithin(f64, f64),
    /// The median is above the threshold, by order statistics ([`median_interval`]); undecided below 6 seeds.
    MedianAbove(f64),
    /// The median is below the threshold, by order statistics; undecided below 6 seeds.
    MedianBelow(f64),
    /// The share of seeds whose value is 1, not 0, is above the threshold, by Clopper and Pearson ([`share_interval`]).
    ShareAbove(f64),
    /// The share of seeds whose value is 1, not 0, is below the threshold, by Clopper and Pearson.
    ShareBelow(f64),
}

/// What the data say of a claim. `Display` gives the word in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The interval lies where the claim says.
    Supported,
    /// The interval lies where the claim denies it.
    Contradicted,
    /// Neither, or too little data, or unfit ones.
    Inconclusive,
}

/// A claim, judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The claim.
    pub claim: Claim,
    /// Mean, median or share over the seeds, as the rule says; `None` without values or where they are unfit.
    pub estimate: Option<f64>,
    /// The interval that decided, lower end first; `None` where there is none.
    pub interval: Option<(f64, f64)>,
    /// Level of the interval.
    pub level: f64,
    /// How many values were given.
    pub seeds: usize,
    /// What they say.
    pub verdict: Verdict,
    /// Why there is no interval, or why it was not asked.
    pub remark: Option<String>,
}

impl Claim {
    /// Judges the claim by one value per seed.
    ///
    /// Never fails: what cannot decide is [`Verdict::Inconclusive`], with a remark. This holds for no value and for a single
    /// one, values that are not finite (a seed that diverged must not vanish silently), shares of values other than 0 and
    /// 1, medians of fewer than 6, and a rule without sense (a threshold that is not finite, a share outside [0, 1],
    /// limits in the wrong order).
    pub fn judge(&self, values: &[f64]) -> Outcome {
        let open = Outcome {
            claim: *self,
            estimate: None,
            interval: None,
            level: LEVEL,
            seeds: values.len(),
            verdict: Verdict::Inconclusive,
            remark: None,
        };
        if let Some(remark) = self.rule.fault().or_else(|| self.rule.unfit(values)) {
            return Outcome { remark: Some(remark), ..open };
        }
        let estimate = self.rule.estimate(values);
        if values.len() < 2 {
            let remark = Some("one seed decides nothing".to_owned());
            return Outcome { estimate, remark, ..open };
        }
        let Some(interval) = self.rule.interval(values) else {
            let remark = Some(format!("{} seeds give no interval", values.len()));
            return Outcome { estimate, remark, ..open };
        };
        Outcome { estimate, interval: Some(interval), verdict: self.rule.decide(interval), ..open }
    }
}

impl Rule {
    /// What is wrong with the rule itself.
    fn fault(&self) -> Option<String> {
        match *self {
            Self::MeanWithin(low, high) if !(low.is_finite() && high.is_finite() && low < high) => {
                Some(format!("the rule's limits {low} and {high} bound nothing"))
            }
            Self::ShareAbove(threshold) | Self::ShareBelow(threshold) if !(0. ..=1.).contains(&threshold) => {
                Some(format!("the rule's threshold {threshold} is not a share"))
            }
            Self::MeanAbove(threshold)
            | Self::MeanBelow(threshold)
            | Self::MedianAbove(threshold)
            | Self::MedianBelow(threshold)
                if !threshold.is_finite() =>
            {
                Some(format!("the rule's threshold {threshold} is not finite"))
            }
            _ => None,
        }
    }

    /// Why these values can decide nothing.
    fn unfit(&self, values: &[f64]) -> Option<String> {
        let count = values.len();
        let strange = values.iter().filter(|value| !value.is_finite()).count();
        let other = values.iter().filter(|value| !matches!(value, 0. | 1.)).count();
        match self {
            _ if count == 0 => Some("no seed, no value".to_owned()),
            _ if strange > 0 => Some(format!("not finite: {strange} of {count} values")),
            Self::ShareAbove(_) | Self::ShareBelow(_) if other > 0 => {
                Some(format!("neither 0 nor 1: {other} of {count} values"))
            }
            _ => None,
        }
    }

    fn estimate(&self, values: &[f64]) -> Option<f64> {
        match self {
            Self::MedianAbove(_) | Self::MedianBelow(_) => median(values),
            _ => mean_interval(values, LEVEL).map(|interval| interval.mean),
        }
    }

    fn interval(&self, values: &[f64]) -> Option<(f64, f64)> {
        match self {
            Self::MeanAbove(_) | Self::MeanBelow(_) | Self::MeanWithin(..) => {
                mean_interval(values, LEVEL)?.ends
            }
            Self::MedianAbove(_) | Self::MedianBelow(_) => median_interval(values, LEVEL),
            Self::ShareAbove(_) | Self::ShareBelow(_) => {
                let successes = values.iter().filter(|value| matches!(value, 1.)).count();
                share_interval(successes, values.len(), LEVEL)
            }
        }
    }

    fn decide(&self, (low, high): (f64, f64)) -> Verdict {
        let (supported, contradicted) = match *self {
            Self::MeanAbove(limit) | Self::MedianAbove(limit) | Self::ShareAbove(limit) => {
                (low > limit, high < limit)
            }
            Self::MeanBelow(limit) | Self::MedianBelow(limit) | Self::ShareBelow(limit) => {
                (high < limit, low > limit)
            }
            Self::MeanWithin(from, to) => (low > from && high < to, high < from || low > to),
        };
        match (supported, contradicted) {
            (true, _) => Verdict::Supported,
            (_, true) => Verdict::Contradicted,
            _ => Verdict::Inconclusive,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::MeanAbove(_) | Self::MeanBelow(_) | Self::MeanWithin(..) => {
                "t interval of the mean over seeds"
            }
            Self::MedianAbove(_) | Self::MedianBelow(_) => {
                "order-statistics interval of the median over seeds"
            }
            Self::ShareAbove(_) | Self::ShareBelow(_) => "Clopper-Pearson interval of the share of seeds",
        };
        let percent = LEVEL * 100.;
        write!(f, "supported if the {percent:.0} % {kind} lies ")?;
        match self {
            Self::MeanAbove(limit) | Self::MedianAbove(limit) | Self::ShareAbove(limit) => {
                write!(f, "above {limit}, contradicted if it lies below")
            }
            Self::MeanBelow(limit) | Self::MedianBelow(limit) | Self::ShareBelow(limit) => {
                write!(f, "below {limit}, contradicted if it lies above")
            }
            Self::MeanWithin(from, to) => {
                write!(f, "between {from} and {to}, contradicted if it lies outside")
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Supported => "supported",
            Self::Contradicted => "contradicted",
            Self::Inconclusive => "inconclusive",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;
    use statrs::distribution::{Binomial, Discrete};

    use Verdict::{Contradicted, Inconclusive, Supported};

    fn judge(rule: Rule, values: &[f64]) -> Outcome {
        Claim { id: "c", statement: "It is so.", source: "Flatland", statistic: "a number", rule }
            .judge(values)
    }

    fn verdict(rule: Rule, values: &[f64]) -> Verdict {
        judge(rule, values).verdict
    }

    fn share(ones: usize, count: usize) -> Vec<f64> {
        (0..count).map(|k| f64::from(u8::from(k < ones))).collect()
    }

    const AROUND_ONE: [f64; 8] = [0.9, 1.1, 1.0, 0.95, 1.05, 0.98, 1.02, 1.0];

    #[test]
    fn clear_data_give_clear_verdicts() {
        for (rule, expected) in [
            (Rule::MeanAbove(0.8), Supported),
            (Rule::MeanAbove(1.2), Contradicted),
            (Rule::MeanAbove(1.01), Inconclusive),
            (Rule::MeanBelow(1.2), Supported),
            (Rule::MeanBelow(0.8), Contradicted),
            (Rule::MeanBelow(0.99), Inconclusive),
            (Rule::MeanWithin(0.8, 1.2), Supported),
            (Rule::MeanWithin(1.2, 1.5), Contradicted),
            (Rule::MeanWithin(0.5, 0.8), Contradicted),
            (Rule::MeanWithin(0.8, 1.01), Inconclusive),
            (Rule::MeanWithin(0.99, 1.01), Inconclusive),
            (Rule::MedianAbove(0.8), Supported),
            (Rule::MedianAbove(1.2), Contradicted),
            (Rule::MedianAbove(1.01), Inconclusive),
            (Rule::MedianBelow(1.2), Supported),
            (Rule::MedianBelow(0.8), Contradicted),
            (Rule::MedianBelow(0.99), Inconclusive),
        ] {
            let outcome = judge(rule, &AROUND_ONE);
            assert_eq!(outcome.verdict, expected, "{rule}");
            assert_relative_eq!(outcome.estimate.unwrap(), 1., max_relative = 1e-12);
            let (low, high) = outcome.interval.unwrap();
            assert!(low < 1. && 1. < high);
            assert_eq!((outcome.seeds, outcome.remark), (8, None));
        }
        for (rule, ones, expected) in [
            (Rule::ShareAbove(0.5), 19, Supported),
            (Rule::ShareAbove(0.5), 1, Contradicted),
            (Rule::ShareAbove(0.5), 10, Inconclusive),
            (Rule::ShareBelow(0.5), 1, Supported),
            (Rule::ShareBelow(0.5), 19, Contradicted),
            (Rule::ShareBelow(0.5), 10, Inconclusive),
        ] {
            let outcome = judge(rule, &share(ones, 20));
            assert_eq!(outcome.verdict, expected, "{rule}");
            assert_relative_eq!(outcome.estimate.unwrap(), ones as f64 / 20.);
        }
    }

    #[test]
    fn an_end_at_the_threshold_decides_nothing() {
        let (low, high) = mean_interval(&AROUND_ONE, LEVEL).unwrap().ends.unwrap();
        assert_eq!(verdict(Rule::MeanAbove(low), &AROUND_ONE), Inconclusive);
        assert_eq!(verdict(Rule::MeanAbove(low.next_down()), &AROUND_ONE), Supported);
        assert_eq!(verdict(Rule::MeanAbove(high), &AROUND_ONE), Inconclusive);
        assert_eq!(verdict(Rule::MeanAbove(high.next_up()), &AROUND_ONE), Contradicted);
        assert_eq!(verdict(Rule::MeanBelow(high), &AROUND_ONE), Inconclusive);
        assert_eq!(verdict(Rule::MeanBelow(low), &AROUND_ONE), Inconclusive);
        assert_eq!(verdict(Rule::MeanWithin(low, high), &AROUND_ONE), Inconclusive);
        assert_eq!(verdict(Rule::MeanWithin(low.next_down(), high.next_up()), &AROUND_ONE), Supported);
        assert_eq!(verdict(Rule::MeanWithin(high, 2.), &AROUND_ONE), Inconclusive);
        assert_eq!(verdict(Rule::MeanWithin(high.next_up(), 2.), &AROUND_ONE), Contradicted);
        // 8 values: from the smallest to the largest.
        assert_eq!(verdict(Rule::MedianAbove(0.9), &AROUND_ONE), Inconclusive);
        assert_eq!(verdict(Rule::MedianAbove(0.9_f64.next_down()), &AROUND_ONE), Supported);
        let low = share_interval(6, 6, LEVEL).unwrap().0;
        assert_eq!(verdict(Rule::ShareAbove(low), &share(6, 6)), Inconclusive);
    }

    #[test]
    fn without_spread_the_value_itself_decides() {
        // The sum of three 0.1 is above 0.3: a tie must stay one.
        let same = [0.1; 3];
        assert_eq!(judge(Rule::MeanAbove(0.), &same).interval, Some((0.1, 0.1)));
        assert_eq!(verdict(Rule::MeanAbove(0.), &same), Supported);
        assert_eq!(verdict(Rule::MeanAbove(0.2), &same), Contradicted);
        assert_eq!(verdict(Rule::MeanAbove(0.1), &same), Inconclusive);
        assert_eq!(verdict(Rule::MeanBelow(0.1), &same), Inconclusive);
        assert_eq!(verdict(Rule::MeanWithin(0.1, 0.2), &same), Inconclusive);
        assert_eq!(verdict(Rule::MeanWithin(0., 0.2), &same), Supported);
        assert_eq!(verdict(Rule::MeanWithin(0.2, 0.3), &same), Contradicted);
        assert_eq!(verdict(Rule::MedianAbove(0.), &[0.1; 6]), Supported);
        assert_eq!(verdict(Rule::MedianAbove(0.1), &[0.1; 6]), Inconclusive);
    }

    #[test]
    fn a_share_needs_enough_seeds() {
        // Clopper-Pearson ends: 5/5 from 0.478, 6/6 from 0.541; 7/9 from 0.400, 8/9 from 0.518.
        for (ones, count, expected) in
            [(5, 5, Inconclusive), (6, 6, Supported), (7, 9, Inconclusive), (8, 9, Supported)]
        {
            assert_eq!(verdict(Rule::ShareAbove(0.5), &share(ones, count)), expected);
            assert_eq!(verdict(Rule::ShareBelow(0.5), &share(count - ones, count)), expected);
        }
        assert_eq!(verdict(Rule::ShareBelow(0.5), &share(6, 6)), Contradicted);
        assert_eq!(verdict(Rule::ShareAbove(1.), &share(50, 50)), Inconclusive);
        assert_eq!(verdict(Rule::ShareAbove(0.), &share(1, 2)), Supported);
    }

    #[test]
    fn too_little_decides_nothing() {
        let outcome = judge(Rule::MeanAbove(0.), &[]);
        assert_eq!((outcome.estimate, outcome.interval, outcome.seeds), (None, None, 0));
        assert_eq!((outcome.verdict, outcome.remark.as_deref()), (Inconclusive, Some("no seed, no value")));
        for rule in [Rule::MeanAbove(0.), Rule::MedianAbove(0.), Rule::ShareAbove(0.)] {
            let outcome = judge(rule, &[1.]);
            assert_eq!((outcome.estimate, outcome.interval), (Some(1.), None));
            assert_eq!(
                (outcome.verdict, outcome.remark.as_deref()),
                (Inconclusive, Some("one seed decides nothing"))
            );
        }
        let outcome = judge(Rule::MedianAbove(0.), &[1.; 5]);
        assert_eq!((outcome.verdict, outcome.estimate), (Inconclusive, Some(1.)));
        assert_eq!(outcome.remark.as_deref(), Some("5 seeds give no interval"));
    }

    #[test]
    fn unfit_values_decide_nothing() {
        for rule in
            [Rule::MeanAbove(0.), Rule::MedianBelow(0.), Rule::ShareAbove(0.1), Rule::MeanWithin(0., 1.)]
        {
            let outcome = judge(rule, &[1., f64::NAN, 1., f64::INFINITY, 1., 1., 1.]);
            assert_eq!((outcome.verdict, outcome.estimate, outcome.seeds), (Inconclusive, None, 7));
            assert_eq!(outcome.remark.as_deref(), Some("not finite: 2 of 7 values"));
        }
        let outcome = judge(Rule::ShareAbove(0.1), &[1., 1., 0.5, 1.]);
        assert_eq!((outcome.verdict, outcome.interval), (Inconclusive, None));
        assert_eq!(outcome.remark.as_deref(), Some("neither 0 nor 1: 1 of 4 values"));
        // Finite, yet their mean is not.
        assert_eq!(verdict(Rule::MeanAbove(0.), &[f64::MAX, f64::MAX / 2.]), Inconclusive);
    }

    #[test]
    fn a_rule_without_sense_decides_nothing() {
        for rule in [
            Rule::MeanAbove(f64::NEG_INFINITY),
            Rule::MedianBelow(f64::NAN),
            Rule::MeanWithin(2., 0.),
            Rule::MeanWithin(f64::NEG_INFINITY, 2.),
            Rule::ShareAbove(-0.1),
            Rule::ShareBelow(95.),
        ] {
            let outcome = judge(rule, &[1.; 10]);
            assert_eq!((outcome.verdict, outcome.estimate), (Inconclusive, None));
            assert!(outcome.remark.unwrap().starts_with("the rule's"));
        }
    }

    /// Share of 4000 data sets, with the truth at the threshold, that decide.
    fn decided(rule: Rule, count: usize, mut draw: impl FnMut(&mut ChaCha8Rng) -> f64) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let decided = (0..4000).filter(|_| {
            let values: Vec<f64> = (0..count).map(|_| draw(&mut random)).collect();
            verdict(rule, &values) != Inconclusive
        });
        decided.count() as f64 / 4000.
    }

    #[test]
    fn chance_decides_as_often_as_the_level_says() {
        // 4000 data sets scatter by 0.0035.
        let normal = |random: &mut ChaCha8Rng| 3. + 2. * random.sample::<f64, _>(StandardNormal);
        for count in [2, 5, 20] {
            assert_relative_eq!(decided(Rule::MeanAbove(3.), count, normal), 0.05, epsilon = 0.011);
        }
        // The order statistics of 9 values cover with 0.9609 (scipy.stats.binom).
        assert_relative_eq!(decided(Rule::MedianBelow(3.), 9, normal), 0.0391, epsilon = 0.011);
        let law = Binomial::new(0.5, 20).unwrap();
        let exact: f64 = (0..=20)
            .filter(|&ones| verdict(Rule::ShareAbove(0.5), &share(ones as usize, 20)) != Inconclusive)
            .map(|ones| law.pmf(ones))
            .sum();
        assert!(exact <= 0.05);
        let coin = |random: &mut ChaCha8Rng| f64::from(u8::from(random.gen_bool(0.5)));
        assert_relative_eq!(decided(Rule::ShareAbove(0.5), 20, coin), exact, epsilon = 0.011);
    }

    #[test]
    fn rules_and_verdicts_read_as_sentences() {
        assert_eq!(
            Rule::MeanAbove(0.).to_string(),
            "supported if the 95 % t interval of the mean over seeds lies above 0, contradicted if it lies below"
        );
        assert_eq!(
            Rule::MeanWithin(-0.5, 0.5).to_string(),
            "supported if the 95 % t interval of the mean over seeds lies between -0.5 and 0.5, contradicted if it lies \
             outside"
        );
        assert_eq!(
            Rule::MedianBelow(0.1).to_string(),
            "supported if the 95 % order-statistics interval of the median over seeds lies below 0.1, contradicted if it \
             lies above"
        );
        assert_eq!(
            Rule::ShareAbove(0.5).to_string(),
            "supported if the 95 % Clopper-Pearson interval of the share of seeds lies above 0.5, contradicted if it lies \
             below"
        );
        assert_eq!(
            format!("{Supported} {Contradicted} {Inconclusive}"),
            "supported contradicted inconclusive"
        );
    }
}
