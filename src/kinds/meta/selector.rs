//! Label and field selectors: parsing, validation, matching.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::error::FieldError;
use super::name;
use crate::value::{items, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: BTreeSet<String>,
}

/// All requirements must hold; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    /// Matches nothing at all (an absent selector in an object).
    pub nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl Requirement {
    /// `labels` is the object's map, null if it has none.
    pub fn matches(&self, labels: &Value) -> bool {
        self.holds(labels.get(&self.key).and_then(Value::as_str))
    }

    /// Whether the label's value, None where there is none, is as required.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|v| number(v));
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => {
                value.and_then(number).zip(bound()).is_some_and(|(v, b)| v > b)
            }
            Operator::LessThan => value.and_then(number).zip(bound()).is_some_and(|(v, b)| v < b),
        }
    }
}

impl LabelSelector {
    pub fn matches(&self, labels: &Value) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// The same for labels as the typed kinds hold them.
    pub fn matches_map(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value = |key: &String| labels.and_then(|l| l.get(key)).map(String::as_str);
        !self.nothing && self.requirements.iter().all(|r| r.holds(value(&r.key)))
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// From a map of labels that must be equal.
    pub fn from_map(labels: &Map<String, Value>) -> Self {
        let equal = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: value.as_str().map(str::to_owned).into_iter().collect(),
        };
        Self { requirements: labels.iter().map(equal).collect(), nothing: false }
    }

    /// From a `LabelSelector` in an object: null matches nothing, `{}` everything.
    pub fn from_value(selector: &Value) -> Self {
        let Value::Object(_) = selector else {
            return Self { requirements: Vec::new(), nothing: true };
        };
        let mut out = match selector.get("matchLabels") {
            Some(Value::Object(labels)) => Self::from_map(labels),
            _ => Self::default(),
        };
        for expression in items(selector, "matchExpressions") {
            let operator = match text(expression, "operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Self { requirements: Vec::new(), nothing: true },
            };
            let values = items(expression, "values").iter().filter_map(Value::as_str);
            out.requirements.push(Requirement {
                key: text(expression, "key").to_owned(),
                operator,
                values: values.map(str::to_owned).collect(),
            });
        }
        out
    }

    /// From a query: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    pub fn parse(query: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { rest: query };
        let mut out = Self::default();
        loop {
            match parser.ahead(Context::Values) {
                Token::End => return Ok(out),
                Token::Word(_) | Token::Symbol("!") => {}
                other => {
                    return Err(found(other, " expected: !, identifier, or 'end of string'"));
                }
            }
            let requirement = parser.requirement().map_err(|SelectorError(why)| {
                SelectorError(format!("unable to parse requirement: {why}"))
            })?;
            out.requirements.push(requirement);
            match parser.next(Context::Values) {
                Token::End => return Ok(out),
                Token::Symbol(",") => {}
                other => return Err(found(other, " expected: ',' or 'end of string'")),
            }
            match parser.ahead(Context::Values) {
                Token::Word(_) | Token::Symbol("!") => {}
                other => return Err(found(other, " expected: identifier after ','")),
            }
        }
    }
}

fn found(token: Token<'_>, wanted: &str) -> SelectorError {
    SelectorError(format!("found '{}',{wanted}", token.text()))
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted: Vec<&Requirement> = self.requirements.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        for (index, requirement) in sorted.into_iter().enumerate() {
            if index > 0 {
                out.write_str(",")?;
            }
            let values: Vec<&str> = requirement.values.iter().map(String::as_str).collect();
            let (key, values) = (&requirement.key, values.join(","));
            match requirement.operator {
                Operator::In if requirement.values.len() == 1 => write!(out, "{key}={values}")?,
                Operator::In => write!(out, "{key} in ({values})")?,
                Operator::NotIn if requirement.values.len() == 1 => {
                    write!(out, "{key}!={values}")?;
                }
                Operator::NotIn => write!(out, "{key} notin ({values})")?,
                Operator::Exists => out.write_str(key)?,
                Operator::DoesNotExist => write!(out, "!{key}")?,
                Operator::GreaterThan => write!(out, "{key}>{values}")?,
                Operator::LessThan => write!(out, "{key}<{values}")?,
            }
        }
        Ok(())
    }
}

/// Where `in` and `notin` are operators, or words like others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Operators,
    Values,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    End,
    Word(&'a str),
    Symbol(&'a str),
    /// Special characters that make no token.
    Junk(&'a str),
}

impl<'a> Token<'a> {
    fn text(self) -> String {
        match self {
            Token::End => String::new(),
            Token::Word(text) | Token::Symbol(text) => text.to_owned(),
            Token::Junk(text) => format!("error expected: keyword found '{text}'"),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

const SYMBOLS: [&str; 9] = ["!", "=", "==", "!=", "<", ">", "(", ")", ","];

impl<'a> Parser<'a> {
    fn next(&mut self, context: Context) -> Token<'a> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let special = |c: char| "!=<>(),".contains(c);
        let Some(first) = self.rest.chars().next() else { return Token::End };
        if special(first) {
            // The longest token wins.
            let length = (1..=2)
                .rev()
                .find(|length| self.rest.get(..*length).is_some_and(|t| SYMBOLS.contains(&t)));
            let Some(length) = length else {
                let end = self.rest.find(|c| !special(c)).unwrap_or(self.rest.len());
                let (junk, rest) = self.rest.split_at(end);
                self.rest = rest;
                return Token::Junk(junk);
            };
            let (symbol, rest) = self.rest.split_at(length);
            self.rest = rest;
            return Token::Symbol(symbol);
        }
        let ends = |c: char| special(c) || matches!(c, ' ' | '\t' | '\r' | '\n');
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "in" | "notin" if context == Context::Operators => Token::Symbol(word),
            word => Token::Word(word),
        }
    }

    fn ahead(&self, context: Context) -> Token<'a> {
        Parser { rest: self.rest }.next(context)
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next(Context::Values);
        let absent = token == Token::Symbol("!");
        if absent {
            token = self.next(Context::Values);
        }
        let Token::Word(key) = token else { return Err(found(token, " expected: identifier")) };
        if let Some(problem) = name::is_qualified(key).into_iter().next() {
            return Err(SelectorError(format!("<nil>: Invalid value: {key:?}: {problem}")));
        }
        let make = |operator, values: BTreeSet<&str>| Requirement {
            key: key.to_owned(),
            operator,
            values: values.into_iter().map(str::to_owned).collect(),
        };
        if absent {
            return Ok(make(Operator::DoesNotExist, BTreeSet::new()));
        }
        if matches!(self.ahead(Context::Values), Token::End | Token::Symbol(",")) {
            return Ok(make(Operator::Exists, BTreeSet::new()));
        }
        let (operator, several) = match self.next(Context::Operators) {
            Token::Symbol("=" | "==") => (Operator::In, false),
            Token::Symbol("!=") => (Operator::NotIn, false),
            Token::Symbol(">") => (Operator::GreaterThan, false),
            Token::Symbol("<") => (Operator::LessThan, false),
            Token::Symbol("in") => (Operator::In, true),
            Token::Symbol("notin") => (Operator::NotIn, true),
            other => return Err(found(other, " expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = if several { self.values()? } else { BTreeSet::from([self.value()?]) };
        check_values(key, operator, &values)?;
        Ok(make(operator, values))
    }

    /// The value after `=`; none is the empty one.
    fn value(&mut self) -> Result<&'a str, SelectorError> {
        if matches!(self.ahead(Context::Values), Token::End | Token::Symbol(",")) {
            return Ok("");
        }
        match self.next(Context::Values) {
            Token::Word(word) => Ok(word),
            other => Err(found(other, " expected: identifier")),
        }
    }

    /// The values in parentheses; one left out is the empty one.
    fn values(&mut self) -> Result<BTreeSet<&'a str>, SelectorError> {
        match self.next(Context::Values) {
            Token::Symbol("(") => {}
            other => {
                return Err(SelectorError(format!("found '{}' expected: '('", other.text())));
            }
        }
        match self.ahead(Context::Values) {
            Token::Word(_) | Token::Symbol(",") => {}
            Token::Symbol(")") => {
                self.next(Context::Values);
                return Ok(BTreeSet::from([""]));
            }
            other => return Err(found(other, " expected: ',', ')' or identifier")),
        }
        let mut values = BTreeSet::new();
        loop {
            match self.next(Context::Values) {
                Token::Word(word) => {
                    values.insert(word);
                    match self.ahead(Context::Values) {
                        Token::Symbol(",") => {}
                        Token::Symbol(")") => break,
                        other => return Err(found(other, " expected: ',' or ')'")),
                    }
                }
                Token::Symbol(",") => {
                    if values.is_empty() {
                        values.insert("");
                    }
                    match self.ahead(Context::Values) {
                        Token::Symbol(")") => {
                            values.insert("");
                            break;
                        }
                        Token::Symbol(",") => {
                            self.next(Context::Values);
                            values.insert("");
                        }
                        _ => {}
                    }
                }
                other => return Err(found(other, " expected: ',', or identifier")),
            }
        }
        self.next(Context::Values);
        Ok(values)
    }
}

fn check_values(
    key: &str,
    operator: Operator,
    values: &BTreeSet<&str>,
) -> Result<(), SelectorError> {
    let mut problems = Vec::new();
    for (at, value) in values.iter().enumerate() {
        let compares = matches!(operator, Operator::GreaterThan | Operator::LessThan);
        if compares && value.parse::<i64>().is_err() {
            problems.push(format!(
                "values[{at}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must \
                 be an integer"
            ));
        }
    }
    for (at, value) in values.iter().enumerate() {
        for problem in name::is_label_value(value) {
            problems.push(format!("values[{at}][{key}]: Invalid value: {value:?}: {problem}"));
        }
    }
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(SelectorError(one.clone())),
        many => Err(SelectorError(format!("[{}]", many.join(", ")))),
    }
}

/// `metadata.name=a,spec.nodeName!=b`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field, whether it must be equal, value.
    pub terms: Vec<(String, bool, String)>,
}

impl FieldSelector {
    pub fn parse(query: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_terms(query) {
            if term.is_empty() {
                continue;
            }
            let found = [("!=", false), ("==", true), ("=", true)]
                .into_iter()
                .filter_map(|(token, equal)| Some((term.find(token)?, token, equal)))
                .min_by_key(|(at, token, _)| (*at, std::cmp::Reverse(token.len())));
            let Some((at, token, equal)) = found else {
                return Err(SelectorError(format!(
                    "invalid selector: '{query}'; can't understand '{term}'"
                )));
            };
            let value = unescape(&term[at + token.len()..])?;
            terms.push((term[..at].to_owned(), equal, value));
        }
        Ok(Self { terms })
    }

    /// The value that the field must have, where the selector leaves it no other.
    pub fn exactly(&self, field: &str) -> Option<&str> {
        let term = self.terms.iter().find(|(name, equal, _)| name == field && *equal);
        term.map(|(_, _, value)| value.as_str())
    }

    /// The terms on the fields named, and the others.
    pub fn split(self, fields: &[&str]) -> (Self, Self) {
        let (named, others) =
            self.terms.into_iter().partition(|(name, ..)| fields.contains(&name.as_str()));
        (Self { terms: named }, Self { terms: others })
    }

    /// The first field that is not among the ones that may be selected by.
    pub fn unsupported<'a>(&'a self, fields: &[(&str, String)]) -> Option<&'a str> {
        let known = |name: &str| fields.iter().any(|(field, _)| *field == name);
        self.terms.iter().map(|(name, ..)| name.as_str()).find(|name| !known(name))
    }

    /// `fields` are the object's selectable ones; an absent one equals the empty string.
    pub fn matches(&self, fields: &[(&str, String)]) -> bool {
        self.terms.iter().all(|(name, equal, want)| {
            let found = fields.iter().find(|(field, _)| field == name);
            (found.map_or("", |(_, value)| value) == want) == *equal
        })
    }
}

fn split_terms(query: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, letter) in query.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&query[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&query[start..]);
    out
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                _ => return Err(SelectorError(format!("invalid field selector: {text}"))),
            },
            ',' | '=' => return Err(SelectorError(format!("invalid field selector: {text}"))),
            other => out.push(other),
        }
    }
    Ok(out)
}

/// Checks a `LabelSelector` in an object.
pub fn validate_label_selector(selector: &Value, field: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
        out.extend(validate_labels(labels, &format!("{field}.matchLabels")));
    }
    for (index, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        let given = !items(expression, "values").is_empty();
        match text(expression, "operator") {
            "In" | "NotIn" if !given => out.push(FieldError::required(
                format!("{field}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if given => out.push(FieldError::forbidden(
                format!("{field}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => out.push(FieldError::invalid(
                format!("{field}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(expression, "key");
        for problem in name::is_qualified(key) {
            out.push(FieldError::invalid(format!("{field}.key"), key, &problem));
        }
        for (at, value) in items(expression, "values").iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            for problem in name::is_label_value(value) {
                out.push(FieldError::invalid(format!("{field}.values[{at}]"), value, &problem));
            }
        }
    }
    out
}

/// Checks keys and values of a map of labels.
pub fn validate_labels(labels: &Map<String, Value>, field: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    for (key, value) in labels {
        for problem in name::is_qualified(key) {
            out.push(FieldError::invalid(field, key.as_str(), &problem));
        }
        let value = value.as_str().unwrap_or_default();
        for problem in name::is_label_value(value) {
            out.push(FieldError::invalid(field, value, &problem));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_match() {
        let labels = json!({"a": "b", "n": "5"});
        for (query, want) in [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            ("a!=b", false),
            ("x!=y", true),
            ("a in (b,c)", true),
            ("a notin (b)", false),
            ("a", true),
            ("!a", false),
            ("!x", true),
            ("n>4", true),
            ("n<4", false),
            ("a=b,x", false),
            (" a = b , !x ", true),
            ("x=", false),
        ] {
            assert_eq!(LabelSelector::parse(query).unwrap().matches(&labels), want, "{query}");
        }
        for query in ["a in b", "a=b,", "=", "a b", "a in (b", "a=-"] {
            assert!(LabelSelector::parse(query).is_err(), "{query}");
        }
        for (query, said) in [
            ("app=>a", "unable to parse requirement: found '>', expected: identifier"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a=b,,c", "found ',', expected: identifier after ','"),
            ("!!a", "unable to parse requirement: found '!', expected: identifier"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
        ] {
            assert_eq!(LabelSelector::parse(query).unwrap_err().to_string(), said, "{query}");
        }
        let blanks = LabelSelector::parse("a in (,b,)").unwrap();
        assert_eq!(blanks.requirements[0].values.len(), 2);
        assert!(!LabelSelector::from_value(&Value::Null).matches(&labels));
        assert!(LabelSelector::from_value(&json!({})).matches(&labels));
        let selector = json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "n", "operator": "In", "values": ["4", "5"]}]});
        let selector = LabelSelector::from_value(&selector);
        assert!(selector.matches(&labels));
        assert_eq!(selector.to_string(), "a=b,n in (4,5)");
    }

    #[test]
    fn field_selectors_match() {
        let fields = [("metadata.name", "a,b".to_owned()), ("spec.nodeName", String::new())];
        let parsed = FieldSelector::parse("metadata.name=a\\,b,spec.nodeName!=n").unwrap();
        assert!(parsed.matches(&fields));
        assert_eq!(parsed.unsupported(&fields), None);
        assert_eq!(FieldSelector::parse("x=1").unwrap().unsupported(&fields), Some("x"));
        assert!(FieldSelector::parse("x").is_err());
    }
}
