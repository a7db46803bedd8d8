//! What the functions do, by name. Types were checked; at run time `dyn` may still not fit.

use std::cmp::Ordering;

use regex::Regex;

use crate::budget::{Budget, EvalError};
use crate::formats;
use crate::lists;
use crate::net::{self, Cidr, Url};
use crate::operators;
use crate::regexes;
use crate::semver::Version;
use crate::strings;
use crate::time;
use crate::value::{Key, Map, Text, Value};

type Eval<'a> = Result<Value<'a>, EvalError>;

/// A function: the target first, if it is called on one.
pub(crate) type Builtin = for<'a> fn(&str, &mut Budget, &[Value<'a>]) -> Eval<'a>;

/// The code of a function of this name.
pub(crate) fn find(name: &str) -> Option<Builtin> {
    Some(match name {
        "!_" => not,
        "-_" | "_+_" | "_-_" | "_*_" | "_/_" | "_%_" | "_==_" | "_!=_" | "@in" | "_<_" | "_<=_"
        | "_>_" | "_>=_" => operator,
        "int" | "uint" | "double" | "string" | "bytes" | "bool" | "timestamp" | "duration" => {
            convert
        }
        "size" | "type" | "dyn" | "matches" | "find" | "findAll" => basic,
        "optional.of"
        | "optional.ofNonZeroValue"
        | "optional.none"
        | "value"
        | "hasValue"
        | "or"
        | "orValue" => optional,
        name if name.starts_with("get") && !is_url_part(name) => time_part,
        "contains"
        | "startsWith"
        | "endsWith"
        | "charAt"
        | "lowerAscii"
        | "upperAscii"
        | "replace"
        | "split"
        | "substring"
        | "trim"
        | "format"
        | "strings.quote"
        | "join"
        | "jsonpatch.escapeKey" => string,
        "indexOf" | "lastIndexOf" => index_of,
        "isSorted" | "sum" | "max" | "min" | "slice" | "flatten" | "sort" | "lists.range"
        | "reverse" | "distinct" | "sets.contains" | "sets.equivalent" | "sets.intersects" => list,
        "url" | "isURL" => url,
        name if is_url_part(name) => url,
        "ip"
        | "isIP"
        | "ip.isCanonical"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast"
        | "cidr"
        | "isCIDR"
        | "containsIP"
        | "containsCIDR"
        | "prefixLength"
        | "masked" => network,
        "quantity" | "isQuantity" | "sign" | "asApproximateFloat" | "asInteger" | "isInteger"
        | "add" | "sub" => quantity,
        "isGreaterThan" | "isLessThan" | "compareTo" => compare,
        "semver" | "isSemver" | "major" | "minor" | "patch" => semver,
        "validate" => validate,
        name if name.starts_with("format.") => format_named,
        "path" | "group" | "serviceAccount" | "resource" | "subresource" | "namespace" | "name"
        | "fieldSelector" | "labelSelector" | "check" | "errored" | "error" | "allowed"
        | "reason" => authorizer,
        _ => return None,
    })
}

fn is_url_part(name: &str) -> bool {
    matches!(
        name,
        "getScheme" | "getHost" | "getHostname" | "getPort" | "getEscapedPath" | "getQuery"
    )
}

fn no_overload(name: &str, args: &[Value<'_>]) -> EvalError {
    let types: Vec<&str> = args.iter().map(Value::type_name).collect();
    EvalError::new(format!("no such overload: {name}({})", types.join(", ")))
}

fn not<'a>(_: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Bool(value)] => Ok(Value::Bool(!value)),
        _ => Err(EvalError::no_overload()),
    }
}

fn operator<'a>(name: &str, budget: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    match (name, args) {
        ("-_", [value]) => operators::negate(value),
        ("_+_", [a, b]) => operators::add(budget, a, b),
        ("_-_", [a, b]) => operators::subtract(a, b),
        ("_*_", [a, b]) => operators::multiply(a, b),
        ("_/_", [a, b]) => operators::divide(a, b),
        ("_%_", [a, b]) => operators::modulo(a, b),
        ("_==_", [a, b]) => Ok(Value::Bool(a.equals(b, budget)?)),
        ("_!=_", [a, b]) => Ok(Value::Bool(!a.equals(b, budget)?)),
        ("@in", [a, b]) => operators::contains(budget, a, b),
        (_, [a, b]) => operators::order(name, a, b),
        _ => Err(EvalError::no_overload()),
    }
}

fn convert<'a>(name: &str, budget: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [value] => operators::convert(name, value, budget),
        _ => Err(no_overload(name, args)),
    }
}

fn basic<'a>(name: &str, budget: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    match (name, args) {
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Value::Type(value.type_of())),
        (
            "size",
            [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))],
        ) => Ok(Value::Int(i64::try_from(value.size()).unwrap_or(i64::MAX))),
        ("matches" | "find" | "findAll", [Value::String(_), Value::String(pattern), ..]) => {
            // Compiling is work that a short pattern can make large.
            budget.work(5_000 + pattern.len() * 10)?;
            let regex = regexes::compile(pattern).map_err(|err| illegal_regex(name, &err))?;
            search(name, &regex, budget, args)
        }
        _ => Err(no_overload(name, args)),
    }
}

fn illegal_regex(name: &str, err: &str) -> EvalError {
    EvalError::new(if name == "matches" { err.to_owned() } else { format!("Illegal regex: {err}") })
}

/// The functions of patterns, with the pattern compiled.
pub(crate) fn search<'a>(
    name: &str,
    regex: &Regex,
    budget: &mut Budget,
    args: &[Value<'a>],
) -> Eval<'a> {
    let Some(Value::String(text)) = args.first() else { return Err(no_overload(name, args)) };
    budget.work(text.len() / 8)?;
    match (name, args.get(2)) {
        ("matches", None) => Ok(Value::Bool(regex.is_match(text))),
        ("find", None) => {
            Ok(Value::string(regex.find(text).map(|found| found.as_str()).unwrap_or_default()))
        }
        ("findAll", limit @ (None | Some(Value::Int(_)))) => {
            let limit = match limit {
                Some(Value::Int(limit)) => usize::try_from(*limit).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            let mut out = Vec::new();
            for found in regex.find_iter(text).take(limit) {
                budget.allocate(48 + found.len())?;
                out.push(Value::string(found.as_str()));
            }
            Ok(Value::list(out))
        }
        _ => Err(no_overload(name, args)),
    }
}

fn optional<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    match (name, args) {
        ("optional.of", [value]) => Ok(Value::some(value.clone())),
        ("optional.ofNonZeroValue", [value]) => {
            Ok(if is_zero(value) { Value::Optional(None) } else { Value::some(value.clone()) })
        }
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("hasValue", [Value::Optional(inner)]) => Ok(Value::Bool(inner.is_some())),
        ("value", [Value::Optional(inner)]) => match inner {
            Some(inner) => Ok((**inner).clone()),
            None => Err(EvalError::new("optional.none() dereference")),
        },
        _ => Err(no_overload(name, args)),
    }
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(value) => !value,
        Value::Int(value) | Value::Duration(value) => *value == 0,
        Value::Uint(value) => *value == 0,
        Value::Double(value) => *value == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.len() == 0,
        Value::Map(map) => map.len() == 0,
        Value::Struct(value) => value.fields.is_empty(),
        _ => false,
    }
}

fn time_part<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Timestamp(at)] => Ok(Value::Int(time::part(*at, name, "UTC")?)),
        [Value::Timestamp(at), Value::String(zone)] => Ok(Value::Int(time::part(*at, name, zone)?)),
        [Value::Duration(nanos)] => Ok(Value::Int(time::duration_part(*nanos, name)?)),
        _ => Err(no_overload(name, args)),
    }
}

fn string<'a>(name: &str, budget: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    use Value::{Int, String as S};
    if let Some(Value::String(text)) = args.first() {
        budget.allocate(text.len())?;
    }
    Ok(match (name, args) {
        ("contains", [S(text), S(wanted)]) => {
            budget.work((text.len() + wanted.len()) / 16)?;
            Value::Bool(text.contains(&**wanted))
        }
        ("startsWith", [S(text), S(start)]) => Value::Bool(text.starts_with(&**start)),
        ("endsWith", [S(text), S(end)]) => Value::Bool(text.ends_with(&**end)),
        ("charAt", [S(text), Int(index)]) => Value::string(strings::char_at(text, *index)?),
        ("lowerAscii", [S(text)]) => Value::string(text.to_ascii_lowercase()),
        ("upperAscii", [S(text)]) => Value::string(text.to_ascii_uppercase()),
        ("replace", [S(text), S(old), S(new)]) => {
            Value::string(strings::replace(text, old, new, -1, budget)?)
        }
        ("replace", [S(text), S(old), S(new), Int(times)]) => {
            Value::string(strings::replace(text, old, new, *times, budget)?)
        }
        ("split", [S(text), S(separator)]) => texts(strings::split(text, separator, -1, budget)?),
        ("split", [S(text), S(separator), Int(limit)]) => {
            texts(strings::split(text, separator, *limit, budget)?)
        }
        ("substring", [S(text), Int(start)]) => {
            Value::string(strings::substring(text, *start, None)?)
        }
        ("substring", [S(text), Int(start), Int(end)]) => {
            Value::string(strings::substring(text, *start, Some(*end))?)
        }
        ("trim", [S(text)]) => Value::string(text.trim()),
        ("strings.quote", [S(text)]) => Value::string(strings::quote(text)),
        ("jsonpatch.escapeKey", [S(text)]) => {
            Value::string(text.replace('~', "~0").replace('/', "~1"))
        }
        ("format", [S(text), Value::List(list)]) => {
            budget.allocate(list.len().saturating_mul(32))?;
            let args: Vec<Value<'_>> = list.iter().collect();
            Value::string(strings::format(text, &args, budget)?)
        }
        ("join", [Value::List(list), rest @ ..]) => {
            let separator = match rest {
                [] => "",
                [S(separator)] => separator,
                _ => return Err(no_overload(name, args)),
            };
            let mut out = String::new();
            for (index, item) in list.iter().enumerate() {
                let S(text) = &item else {
                    return Err(EvalError::new(format!("join: invalid input: {item}")));
                };
                budget.allocate(text.len() + separator.len())?;
                if index > 0 {
                    out.push_str(separator);
                }
                out.push_str(text);
            }
            Value::string(out)
        }
        _ => return Err(no_overload(name, args)),
    })
}

fn texts<'a>(texts: Vec<String>) -> Value<'a> {
    Value::list(texts.into_iter().map(Value::string).collect())
}

fn index_of<'a>(name: &str, budget: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    let last = name == "lastIndexOf";
    Ok(Value::Int(match args {
        [Value::List(list), wanted] => lists::index_of(list, wanted, last, budget)?,
        [Value::String(text), Value::String(wanted)] if last => {
            strings::last_index_of(text, wanted, None)?
        }
        [Value::String(text), Value::String(wanted)] => strings::index_of(text, wanted, 0)?,
        [Value::String(text), Value::String(wanted), Value::Int(from)] if last => {
            strings::last_index_of(text, wanted, Some(*from))?
        }
        [Value::String(text), Value::String(wanted), Value::Int(from)] => {
            strings::index_of(text, wanted, *from)?
        }
        _ => return Err(no_overload(name, args)),
    }))
}

fn list<'a>(name: &str, budget: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    use Value::{Int, List as L};
    Ok(match (name, args) {
        ("isSorted", [L(list)]) => Value::Bool(lists::is_sorted(list, budget)?),
        // The zero of the right type comes with the call.
        ("sum", [L(list), zero]) => {
            let mut sum = zero.clone();
            for item in list.iter() {
                budget.work(1)?;
                sum = operators::add(budget, &sum, &item)?;
            }
            sum
        }
        ("max", [L(list)]) => lists::extreme(list, name, Ordering::Greater, budget)?,
        ("min", [L(list)]) => lists::extreme(list, name, Ordering::Less, budget)?,
        ("slice", [L(list), Int(start), Int(end)]) => lists::slice(list, *start, *end, budget)?,
        ("flatten", [L(list)]) => lists::flatten(list, 1, budget)?,
        ("flatten", [L(list), Int(depth)]) => lists::flatten(list, *depth, budget)?,
        ("sort", [L(list)]) => {
            budget.allocate(list.len().saturating_mul(32))?;
            lists::sort_by(list, list.iter().collect(), budget)?
        }
        ("lists.range", [Int(count)]) => lists::range(*count, budget)?,
        ("reverse", [L(list)]) => lists::reverse(list, budget)?,
        ("distinct", [L(list)]) => lists::distinct(list, budget)?,
        ("sets.contains", [L(a), L(b)]) => Value::Bool(lists::contains_all(a, b, budget)?),
        ("sets.intersects", [L(a), L(b)]) => Value::Bool(lists::intersects(a, b, budget)?),
        ("sets.equivalent", [L(a), L(b)]) => {
            Value::Bool(lists::contains_all(a, b, budget)? && lists::contains_all(b, a, budget)?)
        }
        _ => return Err(no_overload(name, args)),
    })
}

fn url<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    Ok(match (name, args) {
        ("isURL", [Value::String(text)]) => Value::Bool(Url::parse_request(text).is_ok()),
        ("url", [Value::String(text)]) => match Url::parse_request(text) {
            Ok(url) => Value::Url(url.into()),
            Err(err) => {
                let message = format!("URL parse error during conversion from string: {err}");
                return Err(EvalError::new(message));
            }
        },
        ("getScheme", [Value::Url(url)]) => Value::string(&*url.scheme),
        ("getHost", [Value::Url(url)]) => Value::string(&*url.host),
        ("getHostname", [Value::Url(url)]) => Value::string(url.hostname()),
        ("getPort", [Value::Url(url)]) => Value::string(url.port()),
        ("getEscapedPath", [Value::Url(url)]) => Value::string(&*url.escaped_path),
        ("getQuery", [Value::Url(url)]) => {
            let mut entries: std::collections::BTreeMap<String, Vec<Value<'a>>> =
                std::collections::BTreeMap::new();
            for (key, value) in &url.query {
                entries.entry(key.clone()).or_default().push(Value::string(&**value));
            }
            let entries = entries
                .into_iter()
                .map(|(key, values)| (Key::String(Text::Shared(key.into())), Value::list(values)));
            Value::Map(Map::Owned(std::sync::Arc::new(entries.collect())))
        }
        _ => return Err(no_overload(name, args)),
    })
}

fn network<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    let int = |value: u8| Value::Int(i64::from(value));
    Ok(match (name, args) {
        ("isIP", [Value::String(text)]) => Value::Bool(net::parse_ip(text).is_ok()),
        ("ip", [Value::String(text)]) => Value::Ip(net::parse_ip(text).map_err(EvalError::new)?),
        ("ip", [Value::Cidr(cidr)]) => Value::Ip(cidr.address),
        ("ip.isCanonical", [Value::String(text)]) => {
            let address = net::parse_ip(text).map_err(EvalError::new)?;
            Value::Bool(address.to_string() == **text)
        }
        ("family", [Value::Ip(ip)]) => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
        ("isCIDR", [Value::String(text)]) => Value::Bool(Cidr::parse(text).is_ok()),
        ("cidr", [Value::String(text)]) => Value::Cidr(Cidr::parse(text).map_err(EvalError::new)?),
        ("containsIP", [Value::Cidr(cidr), Value::Ip(ip)]) => Value::Bool(cidr.contains(*ip)),
        ("containsIP", [Value::Cidr(cidr), Value::String(text)]) => {
            Value::Bool(cidr.contains(net::parse_ip(text).map_err(EvalError::new)?))
        }
        ("containsCIDR", [Value::Cidr(cidr), Value::Cidr(other)]) => {
            Value::Bool(cidr.contains_network(*other))
        }
        ("containsCIDR", [Value::Cidr(cidr), Value::String(text)]) => {
            Value::Bool(cidr.contains_network(Cidr::parse(text).map_err(EvalError::new)?))
        }
        ("prefixLength", [Value::Cidr(cidr)]) => int(cidr.prefix),
        ("masked", [Value::Cidr(cidr)]) => Value::Cidr(cidr.masked()),
        (_, [Value::Ip(ip)]) => Value::Bool(net::is(*ip, name)),
        _ => return Err(no_overload(name, args)),
    })
}

fn quantity<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    use kinds::meta::quantity::Quantity;
    let whole = |quantity: &Quantity| {
        let value = quantity.value();
        (Quantity::from_units(value) == *quantity).then_some(value)
    };
    Ok(match (name, args) {
        ("isQuantity", [Value::String(text)]) => Value::Bool(text.parse::<Quantity>().is_ok()),
        ("quantity", [Value::String(text)]) => match text.parse() {
            Ok(quantity) => Value::Quantity(quantity),
            Err(err) => return Err(EvalError::new(err.to_string())),
        },
        ("sign", [Value::Quantity(q)]) => Value::Int(match (q.is_zero(), q.is_negative()) {
            (true, _) => 0,
            (_, true) => -1,
            _ => 1,
        }),
        ("asApproximateFloat", [Value::Quantity(q)]) => Value::Double(q.as_f64()),
        ("isInteger", [Value::Quantity(q)]) => Value::Bool(whole(q).is_some()),
        ("asInteger", [Value::Quantity(q)]) => match whole(q) {
            Some(value) => Value::Int(value),
            None => return Err(EvalError::new("cannot convert value to integer")),
        },
        ("add", [Value::Quantity(a), Value::Quantity(b)]) => Value::Quantity(a.plus(*b)),
        ("add", [Value::Quantity(a), Value::Int(b)]) => {
            Value::Quantity(a.plus(Quantity::from_units(*b)))
        }
        ("sub", [Value::Quantity(a), Value::Quantity(b)]) => Value::Quantity(a.minus(*b)),
        ("sub", [Value::Quantity(a), Value::Int(b)]) => {
            Value::Quantity(a.minus(Quantity::from_units(*b)))
        }
        _ => return Err(no_overload(name, args)),
    })
}

/// The order of quantities and of versions.
fn compare<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    let order = match args {
        [Value::Quantity(a), Value::Quantity(b)] => a.cmp(b),
        [Value::Semver(a), Value::Semver(b)] => a.cmp(b),
        _ => return Err(no_overload(name, args)),
    };
    Ok(match name {
        "isGreaterThan" => Value::Bool(order == Ordering::Greater),
        "isLessThan" => Value::Bool(order == Ordering::Less),
        _ => Value::Int(order as i64),
    })
}

fn semver<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    let read = |text: &str, loosely: bool| {
        if loosely { Version::parse_loosely(text) } else { Version::parse(text) }
    };
    let int = |value: u64| Value::Int(i64::try_from(value).unwrap_or(i64::MAX));
    Ok(match (name, args) {
        ("semver", [Value::String(text), Value::Bool(loosely)]) => {
            Value::Semver(read(text, *loosely).map_err(EvalError::new)?.into())
        }
        ("semver", [Value::String(text)]) => {
            Value::Semver(read(text, false).map_err(EvalError::new)?.into())
        }
        ("isSemver", [Value::String(text), Value::Bool(loosely)]) => {
            Value::Bool(read(text, *loosely).is_ok())
        }
        ("isSemver", [Value::String(text)]) => Value::Bool(read(text, false).is_ok()),
        ("major", [Value::Semver(version)]) => int(version.major),
        ("minor", [Value::Semver(version)]) => int(version.minor),
        ("patch", [Value::Semver(version)]) => int(version.patch),
        _ => return Err(no_overload(name, args)),
    })
}

fn format_named<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    match (name, args) {
        ("format.named", [Value::String(wanted)]) => Ok(match formats::named(wanted) {
            Some(format) => Value::some(Value::Format(format)),
            None => Value::Optional(None),
        }),
        (name, []) => name
            .strip_prefix("format.")
            .and_then(formats::named)
            .map(Value::Format)
            .ok_or_else(|| no_overload(name, args)),
        _ => Err(no_overload(name, args)),
    }
}

fn validate<'a>(name: &str, budget: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    let [Value::Format(format), Value::String(text)] = args else {
        return Err(no_overload(name, args));
    };
    budget.allocate(text.len())?;
    let problems = format.problems(text);
    Ok(if problems.is_empty() { Value::Optional(None) } else { Value::some(texts(problems)) })
}

fn authorizer<'a>(name: &str, _: &mut Budget, args: &[Value<'a>]) -> Eval<'a> {
    let Some((Value::Authz(authz), rest)) = args.split_first() else {
        return Err(no_overload(name, args));
    };
    let mut texts = Vec::new();
    for arg in rest {
        texts.push(arg.as_str().ok_or_else(|| no_overload(name, args))?);
    }
    authz.step(name, &texts)
}
