//! Labels: what a user writes on VMs, to find them again by it. banger itself makes nothing of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::ids::{LabelKey, LabelValue, NameError};

/// A VM's labels, by their keys.
pub type Labels = BTreeMap<LabelKey, LabelValue>;

/// No VM has more labels.
pub const MOST_LABELS: usize = 32;

/// One label, as it is written: `KEY=VALUE`. A value may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    pub key: LabelKey,
    pub value: LabelValue,
}

/// What VMs are chosen by, as it is written: `KEY=VALUE`, or `KEY` for whatever value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    key: LabelKey,
    value: Option<LabelValue>,
}

/// Why a text is not a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    #[error("{0:?} has no value: write KEY=VALUE")]
    NoValue(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Label {
    /// # Errors
    /// When it is not `KEY=VALUE`, with the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| LabelError::NoValue(text.to_owned()))?;
        Ok(Self { key: LabelKey::parse(key)?, value: LabelValue::parse(value)? })
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        Self::parse(text)
    }
}

impl Selector {
    /// # Errors
    /// When it is neither `KEY` nor `KEY=VALUE`, with the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        let (key, value) = match text.split_once('=') {
            None => (text, None),
            Some((key, value)) => (key, Some(LabelValue::parse(value)?)),
        };
        Ok(Self { key: LabelKey::parse(key)?, value })
    }

    /// Whether a VM with these labels is chosen.
    #[must_use]
    pub fn chooses(&self, labels: &Labels) -> bool {
        let found = labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            None => write!(f, "{}", self.key),
            Some(value) => write!(f, "{}={value}", self.key),
        }
    }
}

/// As they are written, one after the other: `ci=1, team=web`.
#[must_use]
pub fn shown(labels: &Labels) -> String {
    let all: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    all.join(", ")
}

pub(crate) fn check_key(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 63 {
        return Err("it needs 1 to 63 characters");
    }
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !text.bytes().all(|b| is_plain(b) || b"._-/".contains(&b)) {
        return Err("only a-z, 0-9 and . _ - / are allowed");
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !text.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err("it must begin and end with a letter or a digit");
    }
    Ok(())
}

pub(crate) fn check_value(text: &str) -> Result<(), &'static str> {
    if text.len() > 128 {
        return Err("it is longer than 128 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("it must not have control characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(texts: &[&str]) -> Labels {
        let all = texts.iter().map(|text| Label::parse(text).unwrap());
        all.map(|Label { key, value }| (key, value)).collect()
    }

    #[test]
    fn a_label_is_cut_at_its_first_equals_sign_and_its_value_may_be_empty() {
        let found = labels(&["expr=a=b", "empty=", "example.com/team=Ä ö"]);
        assert_eq!(shown(&found), "empty=, example.com/team=Ä ö, expr=a=b");
    }

    #[test]
    fn what_is_no_label_is_refused_with_the_rule() {
        let long = format!("k={}", "v".repeat(129));
        for (text, rule) in [
            ("ci", "write KEY=VALUE"),
            ("=1", "1 to 63 characters"),
            ("Ci=1", "only a-z, 0-9"),
            ("a b=1", "only a-z, 0-9"),
            ("-a=1", "begin and end with"),
            ("a.=1", "begin and end with"),
            ("k=a\nb", "control characters"),
            ("k=\u{1b}[31m", "control characters"),
            (&long, "longer than 128 bytes"),
        ] {
            let error = Label::parse(text).unwrap_err().to_string();
            assert!(error.contains(rule), "{text:?}: {error}");
        }
        assert!(Selector::parse("CI").is_err());
        assert!(Selector::parse("").is_err());
    }

    #[test]
    fn a_key_alone_chooses_whatever_value_and_a_value_only_its_equal() {
        let found = labels(&["ci=1", "team=web"]);
        for (selector, chosen) in
            [("ci", true), ("ci=1", true), ("ci=2", false), ("ci=", false), ("c", false)]
        {
            assert_eq!(Selector::parse(selector).unwrap().chooses(&found), chosen, "{selector}");
        }
    }

    #[test]
    fn labels_are_checked_when_they_come_off_the_wire() {
        assert!(serde_json::from_str::<Labels>(r#"{"ci": "1"}"#).is_ok());
        assert!(serde_json::from_str::<Labels>(r#"{"CI": "1"}"#).is_err());
        assert!(serde_json::from_str::<Labels>(r#"{"ci": "\u0007"}"#).is_err());
    }
}
