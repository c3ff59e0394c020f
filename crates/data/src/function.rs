//! Functions of one variable, as a user writes them, and their samples.

use std::fmt;
use std::str::FromStr;

use exmex::{Express, FlatEx, FloatOpsFactory, MakeOperators, MatchLiteral, Operator};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::DataError;

/// A function of x, in settings and on the command line an expression such as `sin(3*x)+x^2`.
///
/// `+ - * / ^`, parentheses, the functions of exmex (`sin`, `cos`, `tan`, `exp`, `ln`, `sqrt`, `abs`, `tanh`, `floor`, …),
/// the constants `PI` and `E`, and two of ours: `sinc(z)`, which is sin(z)/z and 1 at 0 (without NumPy's π), and `sign(z)`,
/// which is 0 at 0. Operators of equal rank are taken from left to right: `2^3^2` is 64.
///
/// ```
/// use flatland_data::Function;
/// let bell: Function = "exp(-x^2)".parse()?;
/// assert!((bell.at(2.0) - (-4.0_f64).exp()).abs() < 1e-15);
/// # Ok::<(), flatland_data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Function {
    text: String,
    expression: FlatEx<f64, Operators, Numbers>,
}

/// exmex's operators and ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Operators;

impl MakeOperators<f64> for Operators {
    fn make<'a>() -> Vec<Operator<'a, f64>> {
        let mut operators = FloatOpsFactory::<f64>::make();
        operators.push(Operator::make_unary("sinc", |z: f64| if z == 0. { 1. } else { z.sin() / z }));
        operators.push(Operator::make_unary("sign", |z: f64| if z == 0. { 0. } else { z.signum() }));
        operators
    }
}

/// Numbers as Rust reads them, `1e-3` included, but without a sign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Numbers;

impl MatchLiteral for Numbers {
    fn is_literal(text: &str) -> Option<&str> {
        let digits = |from: usize| text[from..].bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(0);
        let mut end = whole;
        if text[end..].starts_with('.') {
            let places = digits(end + 1);
            if whole + places == 0 {
                return None;
            }
            end += 1 + places;
        } else if whole == 0 {
            return None;
        }
        if text[end..].starts_with(['e', 'E']) {
            let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
            let exponent = digits(end + 1 + sign);
            end += if exponent > 0 { 1 + sign + exponent } else { 0 };
        }
        Some(&text[..end])
    }
}

impl Function {
    /// Its value at x: NaN or infinite where it has none.
    pub fn at(&self, x: f64) -> f64 {
        let variables: &[f64] = if self.expression.var_names().is_empty() { &[] } else { &[x] };
        self.expression.eval(variables).unwrap_or(f64::NAN)
    }

    /// Samples at `from`, `from + step`, …: x and y, each [count, 1].
    ///
    /// # Errors
    /// [`DataError::Pole`] for the first x at which it has no finite value.
    pub fn sample(
        &self,
        from: f64,
        step: f64,
        count: usize,
    ) -> Result<(Array2<f64>, Array2<f64>), DataError> {
        let x = Array2::from_shape_fn((count, 1), |(index, _)| from + index as f64 * step);
        let y = x.mapv(|x| self.at(x));
        match x.iter().zip(&y).find(|(_, y)| !y.is_finite()) {
            Some((&x, &y)) => Err(DataError::Pole { function: self.text.clone(), x, y }),
            None => Ok((x, y)),
        }
    }
}

impl FromStr for Function {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let refuse = |reason: String| DataError::Function { found: text.to_owned(), reason };
        let readable = with_minus_as_in_mathematics(text).map_err(refuse)?;
        let expression = FlatEx::<f64, Operators, Numbers>::parse(&readable)
            .map_err(|error| refuse(error.msg().split_whitespace().collect::<Vec<_>>().join(" ")))?;
        let strange = expression.var_names().iter().find(|name| *name != "x");
        if let Some(name) = strange {
            return Err(refuse(format!("`{name}` is neither x nor a function or constant known here")));
        }
        Ok(Self { text: text.to_owned(), expression })
    }
}

/// exmex binds a leading minus before the power, so that its `-x^2` is x². Here it is 0-x^2, as in mathematics and in Python.
/// A minus right after another operator could be meant both ways, and is refused.
fn with_minus_as_in_mathematics(text: &str) -> Result<String, String> {
    let mut readable = String::new();
    let mut before: Option<char> = None;
    for sign in text.chars() {
        if sign == '-' {
            match before {
                None | Some('(') => readable.push('0'),
                Some('+' | '-' | '*' | '/' | '^' | '%') => {
                    return Err("a minus after another operator needs parentheses, as in 2*(-x)".into());
                }
                Some(_) => {}
            }
        }
        readable.push(sign);
        before = if sign.is_whitespace() { before } else { Some(sign) };
    }
    Ok(readable)
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl TryFrom<String> for Function {
    type Error = DataError;

    fn try_from(text: String) -> Result<Self, DataError> {
        text.parse()
    }
}

impl From<Function> for String {
    fn from(function: Function) -> Self {
        function.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::PI;

    fn value(text: &str, x: f64) -> f64 {
        text.parse::<Function>().unwrap_or_else(|error| panic!("{error}")).at(x)
    }

    #[test]
    #[allow(clippy::type_complexity)]
    fn expressions_have_the_values_of_rust() {
        let cases: [(&str, fn(f64) -> f64); 14] = [
            ("sin(3*x)+x^2", |x| (3. * x).sin() + x * x),
            ("sinc(5*PI*x)", |x| if x == 0. { 1. } else { (5. * PI * x).sin() / (5. * PI * x) }),
            ("sign(sin(5*PI*x))", |x| if x == 0. { 0. } else { (5. * PI * x).sin().signum() }),
            ("-x^2", |x| -(x * x)),
            ("exp( -x^2 / 2 )", |x| (-(x * x) / 2.).exp()),
            ("-x^2*3+1", |x| -(x * x) * 3. + 1.),
            ("1-x^2", |x| 1. - x * x),
            ("2*(-x)^2", |x| 2. * x * x),
            ("1/2*x", |x| 0.5 * x),
            ("1e-3*x+.5-2.E+1", |x| 1e-3 * x + 0.5 - 20.),
            ("abs(x)^0.5", |x| x.abs().sqrt()),
            ("cos(π*x)", |x| (PI * x).cos()),
            ("3", |_| 3.),
            ("x", |x| x),
        ];
        for (text, truth) in cases {
            for x in [-1.5, -0.31, 0., 0.7, 1.49] {
                assert!((value(text, x) - truth(x)).abs() < 1e-12, "{text} at {x}: {}", value(text, x));
            }
        }
    }

    #[test]
    fn what_is_no_expression_in_x_is_refused() {
        for (text, part) in [
            ("", "no function of x"),
            ("sin(", "no function of x"),
            ("x+", "no function of x"),
            ("y+x", "`y`"),
            ("2*-x", "parentheses"),
            ("2x", "no function of x"),
            ("sine(x)", "no function of x"),
            ("x x", "no function of x"),
        ] {
            let message = text.parse::<Function>().expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        use rand::{Rng, SeedableRng, seq::SliceRandom};
        let mut generator = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let pieces = [
            "x", "y", "1", ".", "e", "-", "+", "^", "*", "/", "(", ")", "sin", "PI", " ", "{", "}", "α", ",",
            "sign",
        ];
        for _ in 0..20_000 {
            let count = generator.gen_range(1..8);
            let text: String = (0..count).map(|_| *pieces.choose(&mut generator).unwrap()).collect();
            if let Ok(function) = text.parse::<Function>() {
                function.at(0.5);
            }
        }
    }

    #[test]
    fn samples_stand_at_their_places_and_poles_are_named() {
        let target: Function = "sinc(5*PI*x)".parse().unwrap();
        let (x, y) = target.sample(-1.5, 0.01, 300).unwrap();
        assert_eq!((x.dim(), y.dim()), ((300, 1), (300, 1)));
        assert!((x[[299, 0]] - 1.49).abs() < 1e-12);
        // The variance of the target, at which the notebook's dead network ends: 0.0613.
        let mean = y.mean().unwrap();
        assert!((y.mapv(|y| (y - mean).powi(2)).mean().unwrap() - 0.0613).abs() < 5e-5);
        let pole = "1/x".parse::<Function>().unwrap().sample(-1., 0.5, 5).unwrap_err().to_string();
        assert!(pole.contains("x = 0") && pole.contains("1/x"), "{pole}");
    }

    #[test]
    fn functions_go_there_and_back() {
        let function: Function = serde_json::from_str("\"sin(3*x)+x^2\"").unwrap();
        assert_eq!(serde_json::to_string(&function).unwrap(), "\"sin(3*x)+x^2\"");
        assert!(serde_json::from_str::<Function>("\"sin(\"").is_err());
    }
}
