//! The functions of strings: cel-go's extension in its version 2, which counts characters.

use crate::budget::{Budget, EvalError};
use crate::time;
use crate::value::Value;

type Eval<T> = Result<T, EvalError>;

fn out_of_range(index: i64) -> EvalError {
    EvalError::new(format!("index out of range: {index}"))
}

/// A byte offset for a position in characters, which may be the end.
fn offset(text: &str, position: i64) -> Option<usize> {
    let position = usize::try_from(position).ok()?;
    let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    ends.nth(position)
}

fn chars(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

pub(crate) fn char_at(text: &str, index: i64) -> Eval<String> {
    let at = offset(text, index).ok_or_else(|| out_of_range(index))?;
    Ok(text[at..].chars().next().map(String::from).unwrap_or_default())
}

pub(crate) fn index_of(text: &str, wanted: &str, from: i64) -> Eval<i64> {
    let start = offset(text, from).ok_or_else(|| out_of_range(from))?;
    Ok(text[start..].find(wanted).map_or(-1, |at| chars(&text[..start + at])))
}

pub(crate) fn last_index_of(text: &str, wanted: &str, from: Option<i64>) -> Eval<i64> {
    let end = match from {
        None => text.len(),
        Some(from) if wanted.is_empty() => {
            return offset(text, from).map(|_| from).ok_or_else(|| out_of_range(from));
        }
        Some(from) => {
            let start = offset(text, from).ok_or_else(|| out_of_range(from))?;
            // A match may begin at this character, and go on after it.
            let most = start.saturating_add(wanted.len()).min(text.len());
            (most..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())
        }
    };
    Ok(text[..end].rfind(wanted).map_or(-1, |at| chars(&text[..at])))
}

pub(crate) fn substring(text: &str, start: i64, end: Option<i64>) -> Eval<String> {
    let from = offset(text, start);
    let Some(end) = end else {
        let from = from.ok_or_else(|| out_of_range(start))?;
        return Ok(text[from..].to_owned());
    };
    if start > end {
        let message = format!("invalid substring range. start: {start}, end: {end}");
        return Err(EvalError::new(message));
    }
    let from = from.ok_or_else(|| out_of_range(start))?;
    let to = offset(text, end).ok_or_else(|| out_of_range(end))?;
    Ok(text[from..to].to_owned())
}

pub(crate) fn replace(
    text: &str,
    old: &str,
    new: &str,
    times: i64,
    budget: &mut Budget,
) -> Eval<String> {
    let found = if old.is_empty() { text.len() + 1 } else { text.len() / old.len() };
    let most = usize::try_from(times).unwrap_or(found).min(found);
    budget.allocate(text.len().saturating_add(most.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, most))
}

pub(crate) fn split(
    text: &str,
    separator: &str,
    limit: i64,
    budget: &mut Budget,
) -> Eval<Vec<String>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let most = if separator.is_empty() { text.len() } else { text.len() / separator.len() + 1 };
    budget.allocate(text.len().saturating_add(most.min(limit).saturating_mul(64)))?;
    if limit == 0 {
        return Ok(Vec::new());
    }
    if !separator.is_empty() {
        return Ok(text.splitn(limit, separator).map(str::to_owned).collect());
    }
    let mut out: Vec<String> = text.chars().take(limit).map(String::from).collect();
    if let Some(last) = out.last_mut()
        && let Some((at, c)) = text.char_indices().nth(limit - 1)
    {
        last.push_str(&text[at + c.len_utf8()..]);
    }
    Ok(out)
}

/// The text between quotes, with what is special escaped.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The shortest decimal that reads back, without an exponent.
pub(crate) fn format_double(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    value.to_string()
}

/// As Go's `%g`: with an exponent where the number is large or small.
pub(crate) fn double_to_string(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    // Go turns to the exponent at a million, however many digits there are.
    if value == 0.0 || (-4..6).contains(&exponent) {
        return value.to_string();
    }
    format!("{mantissa}e{}", signed_exponent(exponent))
}

fn signed_exponent(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{:02}", exponent.unsigned_abs())
}

/// `format`: clauses `%s %d %f %e %b %x %X %o`, with a precision for `f` and `e`.
pub(crate) fn format(text: &str, args: &[Value<'_>], budget: &mut Budget) -> Eval<String> {
    let mut out = String::new();
    let mut args_used = 0;
    let mut chars = text.chars().peekable();
    let broken = |what: &str| EvalError::new(format!("could not parse formatting clause: {what}"));
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision: Option<usize> = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.peek().filter(|c| c.is_ascii_digit()) {
                digits.push(*digit);
                chars.next();
            }
            precision = match digits.parse() {
                Ok(precision) if precision <= 1_000 => Some(precision),
                _ => return Err(broken("precision is out of range")),
            };
        }
        let clause = chars.next().ok_or_else(|| broken("unexpected end of string"))?;
        if !"sdfebxXo".contains(clause) {
            return Err(broken(&format!(
                "unrecognized formatting clause {:?}",
                clause.to_string()
            )));
        }
        let index = args_used;
        args_used += 1;
        let arg =
            args.get(index).ok_or_else(|| EvalError::new(format!("index {index} out of range")))?;
        let piece = one(clause, arg, precision.unwrap_or(6), budget).map_err(|err| {
            if err.is_over_budget() {
                err
            } else {
                EvalError::new(format!("error during formatting: {err}"))
            }
        })?;
        budget.allocate(piece.len())?;
        out.push_str(&piece);
    }
    budget.allocate(out.len())?;
    Ok(out)
}

fn one(clause: char, arg: &Value<'_>, precision: usize, budget: &mut Budget) -> Eval<String> {
    let wrong = |what: &str| EvalError::new(format!("{what}, was given {}", arg.type_name()));
    Ok(match (clause, arg) {
        ('s', arg) => {
            let mut out = String::new();
            plain(arg, &mut out, budget)?;
            out
        }
        ('d', Value::Int(value)) => value.to_string(),
        ('d', Value::Uint(value)) => value.to_string(),
        ('d', Value::Double(value)) => format_double(*value),
        ('d', _) => {
            return Err(wrong("decimal clause can only be used on ints, uints, and doubles"));
        }
        ('f' | 'e', Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
            let value = match arg {
                Value::Int(value) => *value as f64,
                Value::Uint(value) => *value as f64,
                Value::Double(value) => *value,
                _ => f64::NAN,
            };
            if !value.is_finite() {
                format_double(value)
            } else if clause == 'f' {
                format!("{value:.precision$}")
            } else {
                let text = format!("{value:.precision$e}");
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                format!("{mantissa}e{}", signed_exponent(exponent.parse().unwrap_or(0)))
            }
        }
        ('f', _) => {
            return Err(wrong("fixed-point clause can only be used on ints, uints, and doubles"));
        }
        ('e', _) => {
            return Err(wrong("scientific clause can only be used on ints, uints, and doubles"));
        }
        ('b', Value::Int(value)) => signed(*value, |v| format!("{v:b}")),
        ('b', Value::Uint(value)) => format!("{value:b}"),
        ('b', Value::Bool(value)) => u8::from(*value).to_string(),
        ('b', _) => {
            return Err(wrong("only ints, uints, and bools can be formatted as binary"));
        }
        ('o', Value::Int(value)) => signed(*value, |v| format!("{v:o}")),
        ('o', Value::Uint(value)) => format!("{value:o}"),
        ('o', _) => return Err(wrong("octal clause can only be used on ints and uints")),
        (_, Value::Int(value)) => cased(clause, signed(*value, |v| format!("{v:x}"))),
        (_, Value::Uint(value)) => cased(clause, format!("{value:x}")),
        (_, Value::String(text)) => cased(clause, hex(text.as_bytes(), budget)?),
        (_, Value::Bytes(bytes)) => cased(clause, hex(bytes, budget)?),
        _ => {
            return Err(wrong("only ints, uints, bytes, and strings can be formatted as hex"));
        }
    })
}

fn signed(value: i64, digits: impl Fn(u64) -> String) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}", digits(value.unsigned_abs()))
}

fn cased(clause: char, text: String) -> String {
    if clause == 'X' { text.to_uppercase() } else { text }
}

fn hex(bytes: &[u8], budget: &mut Budget) -> Eval<String> {
    budget.allocate(bytes.len().saturating_mul(2))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The `%s` form of any value.
fn plain(value: &Value<'_>, out: &mut String, budget: &mut Budget) -> Eval<()> {
    budget.work(1)?;
    let before = out.len();
    match value {
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                plain(&item, out, budget)?;
            }
            out.push(']');
            return Ok(());
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for (key, value) in map.entries() {
                let (mut k, mut v) = (String::new(), String::new());
                plain(&key, &mut k, budget)?;
                plain(&value, &mut v, budget)?;
                entries.push((k, v));
            }
            entries.sort();
            let shown: Vec<String> = entries.iter().map(|(k, v)| format!("{k}: {v}")).collect();
            out.push_str(&format!("{{{}}}", shown.join(", ")));
        }
        Value::Bytes(bytes) => out.push_str(&String::from_utf8_lossy(bytes)),
        Value::Type(ty) => out.push_str(type_text(ty)),
        Value::Duration(nanos) => {
            out.push_str(&format_double(*nanos as f64 / 1e9));
            out.push('s');
        }
        Value::Timestamp(at) => out.push_str(&time::format_timestamp(*at)),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::String(_) => out.push_str(&value.to_string()),
        _ => {
            let message = format!(
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}",
                value.type_name()
            );
            return Err(EvalError::new(message));
        }
    }
    budget.allocate(out.len() - before)
}

/// The name of a type as a value.
pub(crate) fn type_text(ty: &crate::types::Type) -> &str {
    use crate::types::Type;
    match ty {
        Type::Null => "null_type",
        Type::Bool => "bool",
        Type::Int => "int",
        Type::Uint => "uint",
        Type::Double => "double",
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Timestamp => "google.protobuf.Timestamp",
        Type::Duration => "google.protobuf.Duration",
        Type::List(_) => "list",
        Type::Map(_) => "map",
        Type::Optional(_) => "optional_type",
        Type::Type(_) => "type",
        Type::Object(object) => &object.name,
        Type::Opaque(name) => name,
        _ => "dyn",
    }
}
