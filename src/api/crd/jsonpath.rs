//! The part of JSONPath that printer columns use (k8s.io/client-go, `util/jsonpath`):
//! fields, indices, slices, wildcards, recursive descent, unions and filters.
//!
//! A path that leads nowhere finds nothing; it is no error.

use serde_json::Value;

/// Values found by one path; the rest is left out.
const FOUND_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// `[*]` and `.*`
    All,
    /// `..`
    Deep,
    Slice {
        from: Option<i64>,
        to: Option<i64>,
        step: i64,
    },
    Union(Vec<Step>),
    Filter(Steps, Operator, Operand),
    /// `[?(@.a)]`
    Exists(Steps),
}

type Steps = Vec<Step>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Literal(Value),
    Path(Steps),
}

/// A path that can be followed.
#[derive(Debug, Clone, PartialEq)]
pub struct Path(Steps);

impl Path {
    /// # Errors
    /// Where the text is no path.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0 };
        let steps = parser.steps()?;
        if parser.at < text.len() {
            return Err(format!("unrecognized character in action: {}", &text[parser.at..]));
        }
        Ok(Self(steps))
    }

    /// What the path leads to, in document order.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        follow(&self.0, value)
    }
}

/// As kubectl prints a value that was found.
pub fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn follow<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut current = vec![value];
    for step in steps {
        let mut next = Vec::new();
        for value in current {
            one(step, value, &mut next);
            if next.len() >= FOUND_MAX {
                break;
            }
        }
        current = next;
    }
    current
}

fn one<'a>(step: &Step, value: &'a Value, out: &mut Vec<&'a Value>) {
    match step {
        Step::Field(name) => out.extend(value.get(name)),
        Step::All => match value {
            Value::Array(items) => out.extend(items),
            Value::Object(map) => out.extend(map.values()),
            _ => {}
        },
        Step::Deep => deep(value, out),
        Step::Slice { from, to, step } => {
            let Value::Array(items) = value else { return };
            let size = items.len() as i64;
            let place = |n: i64| if n < 0 { (n + size).max(0) } else { n.min(size) };
            let from = place(from.unwrap_or(0));
            let to = to.map_or(size, place);
            let step = (*step).max(1) as usize;
            if from < to {
                out.extend(items[from as usize..to as usize].iter().step_by(step));
            }
        }
        Step::Union(steps) => steps.iter().for_each(|step| one(step, value, out)),
        Step::Exists(path) => {
            let Value::Array(items) = value else { return };
            out.extend(items.iter().filter(|item| !follow(path, item).is_empty()));
        }
        Step::Filter(path, operator, operand) => {
            let Value::Array(items) = value else { return };
            out.extend(items.iter().filter(|item| {
                let left = follow(path, item);
                let right: Option<&Value> = match operand {
                    Operand::Literal(value) => Some(value),
                    Operand::Path(path) => follow(path, item).first().copied(),
                };
                match (left.first(), right) {
                    (Some(left), Some(right)) => holds(left, *operator, right),
                    _ => false,
                }
            }));
        }
    }
}

fn deep<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    if out.len() >= FOUND_MAX {
        return;
    }
    out.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| deep(item, out)),
        Value::Object(map) => map.values().for_each(|item| deep(item, out)),
        _ => {}
    }
}

fn holds(left: &Value, operator: Operator, right: &Value) -> bool {
    use std::cmp::Ordering;
    let order = match (left, right) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b))
        }
        (a, b) if a == b => Some(Ordering::Equal),
        _ => None,
    };
    match operator {
        Operator::Equal => order == Some(Ordering::Equal),
        Operator::Unequal => order != Some(Ordering::Equal),
        Operator::Less => order == Some(Ordering::Less),
        Operator::LessEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Operator::Greater => order == Some(Ordering::Greater),
        Operator::GreaterEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn eat(&mut self, word: &str) -> bool {
        let here = self.rest().starts_with(word);
        if here {
            self.at += word.len();
        }
        here
    }

    fn spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn steps(&mut self) -> Result<Steps, String> {
        let mut steps = Vec::new();
        self.eat("$");
        loop {
            if self.eat("..") {
                steps.push(Step::Deep);
                if !self.rest().starts_with('[') {
                    steps.push(self.field());
                }
            } else if self.eat(".") {
                if self.eat("*") {
                    steps.push(Step::All);
                } else if !self.rest().starts_with('[') {
                    let field = self.field();
                    // A lone dot is the value itself.
                    if field != Step::Field(String::new()) {
                        steps.push(field);
                    }
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else {
                return Ok(steps);
            }
        }
    }

    fn field(&mut self) -> Step {
        let mut name = String::new();
        let mut escaped = false;
        let mut length = 0;
        for char in self.rest().chars() {
            if escaped {
                escaped = false;
                name.push(char);
            } else if char == '\\' {
                escaped = true;
            } else if matches!(
                char,
                '.' | '[' | ']' | ')' | '(' | ',' | ' ' | '=' | '!' | '<' | '>'
            ) {
                break;
            } else {
                name.push(char);
            }
            length += char.len_utf8();
        }
        self.at += length;
        if name == "*" { Step::All } else { Step::Field(name) }
    }

    fn bracket(&mut self) -> Result<Step, String> {
        self.spaces();
        if self.eat("?(") {
            let step = self.filter()?;
            self.spaces();
            if !self.eat(")") || !self.eat("]") {
                return Err("unterminated filter".into());
            }
            return Ok(step);
        }
        let mut steps = Vec::new();
        loop {
            self.spaces();
            if self.rest().starts_with(['\'', '"']) {
                let Value::String(name) = self.quoted()? else { unreachable!("quoted is text") };
                steps.push(Step::Field(name));
            } else {
                let end = self.rest().find([',', ']']).ok_or("unterminated array")?;
                let text = self.rest()[..end].trim().to_string();
                self.at += end;
                steps.push(index(&text)?);
            }
            self.spaces();
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return Err("unterminated array".into());
            }
        }
        Ok(if steps.len() == 1 { steps.remove(0) } else { Step::Union(steps) })
    }

    fn quoted(&mut self) -> Result<Value, String> {
        let quote = self.rest().chars().next().unwrap_or('"');
        let mut out = String::new();
        let mut escaped = false;
        for (at, char) in self.rest().char_indices().skip(1) {
            if escaped {
                escaped = false;
                out.push(char);
            } else if char == '\\' {
                escaped = true;
            } else if char == quote {
                self.at += at + char.len_utf8();
                return Ok(Value::String(out));
            } else {
                out.push(char);
            }
        }
        Err("unterminated quoted string".into())
    }

    fn filter(&mut self) -> Result<Step, String> {
        self.spaces();
        if !self.eat("@") {
            return Err("a filter begins with @".into());
        }
        let path = self.steps()?;
        self.spaces();
        let operators = [
            ("==", Operator::Equal),
            ("!=", Operator::Unequal),
            ("<=", Operator::LessEqual),
            (">=", Operator::GreaterEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        let Some((word, operator)) =
            operators.into_iter().find(|(word, _)| self.rest().starts_with(word))
        else {
            return Ok(Step::Exists(path));
        };
        self.at += word.len();
        self.spaces();
        let operand = if self.eat("@") {
            Operand::Path(self.steps()?)
        } else if self.rest().starts_with(['\'', '"']) {
            Operand::Literal(self.quoted()?)
        } else {
            let end = self.rest().find(')').ok_or("unterminated filter")?;
            let text = self.rest()[..end].trim().to_string();
            self.at += end;
            let literal = serde_json::from_str(&text);
            Operand::Literal(literal.map_err(|_| format!("unrecognized value {text}"))?)
        };
        Ok(Step::Filter(path, operator, operand))
    }
}

fn index(text: &str) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::All);
    }
    let number = |text: &str| -> Result<Option<i64>, String> {
        match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| format!("invalid array index {text}")),
        }
    };
    let parts: Vec<&str> = text.split(':').map(str::trim).collect();
    match parts.as_slice() {
        [one] => {
            let at = number(one)?.ok_or("invalid array index")?;
            // The last one has no number behind it.
            let to = if at == -1 { None } else { Some(at + 1) };
            Ok(Step::Slice { from: Some(at), to, step: 1 })
        }
        [from, to] => Ok(Step::Slice { from: number(from)?, to: number(to)?, step: 1 }),
        [from, to, step] => Ok(Step::Slice {
            from: number(from)?,
            to: number(to)?,
            step: number(step)?.unwrap_or(1),
        }),
        _ => Err(format!("invalid array index {text}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_where_kubectl_leads() {
        let value =
            json!({"a": {"b": [{"n": 1, "k": "x"}, {"n": 2, "k": "y"}, {"n": 3}], "c.d": 5}});
        for (path, want) in [
            (".a.b[0].n", json!([1])),
            (".a.b[-1].n", json!([3])),
            (".a.b[*].n", json!([1, 2, 3])),
            (".a.b[0:2].n", json!([1, 2])),
            (".a.b[0,2].n", json!([1, 3])),
            (".a['c.d']", json!([5])),
            (".a.c\\.d", json!([5])),
            (".a.b[?(@.k==\"y\")].n", json!([2])),
            (".a.b[?(@.n>=2)].n", json!([2, 3])),
            (".a.b[?(@.k)].n", json!([1, 2])),
            ("..n", json!([1, 2, 3])),
            (".a.missing.x", json!([])),
            ("$.a.b[1].k", json!(["y"])),
        ] {
            let found = Path::parse(path).unwrap().find(&value).into_iter().cloned();
            assert_eq!(Value::Array(found.collect()), want, "{path}");
        }
        assert!(Path::parse(".a[").is_err());
        assert!(Path::parse(".a[?(@.b==)]").is_err());
    }
}
