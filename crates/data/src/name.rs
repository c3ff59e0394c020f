//! The data sets by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DataError;

/// A data set of 28x28 grey images in ten classes, 60,000 for training and 10,000 for testing.
///
/// In settings and on the command line: `mnist`, `fashion-mnist`, `kmnist`, `digits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DataSetName {
    /// Handwritten digits (LeCun, Cortes and Burges 1998).
    Mnist,
    /// Articles of clothing (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747).
    FashionMnist,
    /// Cursive Japanese characters (Clanuwat et al. 2018, arXiv:1812.01718).
    Kmnist,
    /// Handwritten-like digits made on the spot from a seed: needs no file and no network.
    Digits,
}

impl DataSetName {
    /// All data sets.
    pub const ALL: [Self; 4] = [Self::Mnist, Self::FashionMnist, Self::Kmnist, Self::Digits];

    /// The name as written in settings; also the name of the data set's folder.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Kmnist => "kmnist",
            Self::Digits => "digits",
        }
    }
}

impl fmt::Display for DataSetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DataSetName {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| unknown(text))
    }
}

impl TryFrom<String> for DataSetName {
    type Error = DataError;

    fn try_from(text: String) -> Result<Self, DataError> {
        text.parse()
    }
}

impl From<DataSetName> for String {
    fn from(name: DataSetName) -> Self {
        name.as_str().to_owned()
    }
}

fn unknown(text: &str) -> DataError {
    let likeness = |name: &DataSetName| strsim::jaro_winkler(&text.to_lowercase(), name.as_str());
    let nearest = DataSetName::ALL.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    DataError::UnknownName {
        found: text.to_owned(),
        known: DataSetName::ALL.map(DataSetName::as_str).join(", "),
        nearest: nearest.unwrap_or(DataSetName::Digits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for name in DataSetName::ALL {
            assert_eq!(name.to_string().parse::<DataSetName>().unwrap(), name);
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<DataSetName>(&json).unwrap(), name);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_and_suggests_the_nearest() {
        for (wrong, right) in [
            ("fasion-mnist", "fashion-mnist"),
            ("MNIST", "mnist"),
            ("k-mnist", "kmnist"),
            ("digit", "digits"),
        ] {
            let message = wrong.parse::<DataSetName>().unwrap_err().to_string();
            assert!(message.contains("mnist, fashion-mnist, kmnist, digits"), "{message}");
            assert!(message.contains(&format!("did you mean `{right}`")), "{message}");
        }
        assert!(serde_json::from_str::<DataSetName>("\"cifar\"").unwrap_err().to_string().contains("cifar"));
    }
}
