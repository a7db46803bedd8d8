//! Arithmetic, order and conversions, with cel-go's errors for what does not fit.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::budget::{Budget, EvalError};
use crate::strings;
use crate::time;
use crate::value::Value;

type Eval<'a> = Result<Value<'a>, EvalError>;

fn int_overflow() -> EvalError {
    EvalError::new("integer overflow")
}

fn uint_overflow() -> EvalError {
    EvalError::new("unsigned integer overflow")
}

fn duration_overflow() -> EvalError {
    EvalError::new("duration overflow")
}

pub(crate) fn add<'a>(budget: &mut Budget, a: &Value<'a>, b: &Value<'a>) -> Eval<'a> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => {
            Value::Uint(a.checked_add(*b).ok_or_else(uint_overflow)?)
        }
        (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Value::String(a), Value::String(b)) => {
            budget.allocate(a.len().saturating_add(b.len()))?;
            Value::string([&**a, &**b].concat())
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            budget.allocate(a.len().saturating_add(b.len()))?;
            Value::Bytes([&**a, &**b].concat().into())
        }
        (Value::List(a), Value::List(b)) => Value::List(a.concat(b, budget)?),
        (Value::Duration(a), Value::Duration(b)) => {
            Value::Duration(a.checked_add(*b).ok_or_else(duration_overflow)?)
        }
        (Value::Timestamp(at), Value::Duration(by))
        | (Value::Duration(by), Value::Timestamp(at)) => {
            Value::Timestamp(time::shift(*at, *by, false)?)
        }
        _ => return Err(EvalError::no_overload()),
    })
}

pub(crate) fn subtract<'a>(a: &Value<'a>, b: &Value<'a>) -> Eval<'a> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_sub(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => {
            Value::Uint(a.checked_sub(*b).ok_or_else(uint_overflow)?)
        }
        (Value::Double(a), Value::Double(b)) => Value::Double(a - b),
        (Value::Duration(a), Value::Duration(b)) => {
            Value::Duration(a.checked_sub(*b).ok_or_else(duration_overflow)?)
        }
        (Value::Timestamp(at), Value::Duration(by)) => {
            Value::Timestamp(time::shift(*at, *by, true)?)
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => Value::Duration(time::between(*a, *b)?),
        _ => return Err(EvalError::no_overload()),
    })
}

pub(crate) fn multiply<'a>(a: &Value<'a>, b: &Value<'a>) -> Eval<'a> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_mul(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => {
            Value::Uint(a.checked_mul(*b).ok_or_else(uint_overflow)?)
        }
        (Value::Double(a), Value::Double(b)) => Value::Double(a * b),
        _ => return Err(EvalError::no_overload()),
    })
}

pub(crate) fn divide<'a>(a: &Value<'a>, b: &Value<'a>) -> Eval<'a> {
    let by_zero = || EvalError::new("division by zero");
    Ok(match (a, b) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => return Err(by_zero()),
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_div(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a / b),
        (Value::Double(a), Value::Double(b)) => Value::Double(a / b),
        _ => return Err(EvalError::no_overload()),
    })
}

pub(crate) fn modulo<'a>(a: &Value<'a>, b: &Value<'a>) -> Eval<'a> {
    let by_zero = || EvalError::new("modulus by zero");
    Ok(match (a, b) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => return Err(by_zero()),
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_rem(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a % b),
        _ => return Err(EvalError::no_overload()),
    })
}

pub(crate) fn negate<'a>(value: &Value<'a>) -> Eval<'a> {
    Ok(match value {
        Value::Int(value) => Value::Int(value.checked_neg().ok_or_else(int_overflow)?),
        Value::Double(value) => Value::Double(-value),
        Value::Duration(value) => {
            Value::Duration(value.checked_neg().ok_or_else(duration_overflow)?)
        }
        _ => return Err(EvalError::no_overload()),
    })
}

pub(crate) fn order<'a>(name: &str, a: &Value<'a>, b: &Value<'a>) -> Eval<'a> {
    let order = a.compare(b)?;
    Ok(Value::Bool(match name {
        "_<_" => order == Ordering::Less,
        "_<=_" => order != Ordering::Greater,
        "_>_" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    }))
}

pub(crate) fn contains<'a>(budget: &mut Budget, a: &Value<'a>, b: &Value<'a>) -> Eval<'a> {
    match b {
        Value::List(list) => Ok(Value::Bool(list.contains(a, budget)?)),
        Value::Map(map) => Ok(Value::Bool(map.has(a))),
        _ => Err(EvalError::no_overload()),
    }
}

fn conversion(from: &Value<'_>, to: &str) -> EvalError {
    EvalError::new(format!("type conversion error from '{}' to '{to}'", from.type_name()))
}

/// The conversions named like the type they make.
pub(crate) fn convert<'a>(name: &str, value: &Value<'a>, budget: &mut Budget) -> Eval<'a> {
    match name {
        "int" => to_int(value),
        "uint" => to_uint(value),
        "double" => to_double(value),
        "string" => to_string(value, budget),
        "bytes" => match value {
            Value::Bytes(_) => Ok(value.clone()),
            Value::String(text) => {
                budget.allocate(text.len())?;
                Ok(Value::Bytes(Arc::from(text.as_bytes())))
            }
            _ => Err(conversion(value, "bytes")),
        },
        "bool" => match value {
            Value::Bool(_) => Ok(value.clone()),
            Value::String(text) => match &**text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
                _ => Err(conversion(value, "bool")),
            },
            _ => Err(conversion(value, "bool")),
        },
        "timestamp" => match value {
            Value::Timestamp(_) => Ok(value.clone()),
            Value::Int(seconds) => Ok(Value::Timestamp(time::from_seconds(*seconds)?)),
            Value::String(text) => time::parse_timestamp(text)
                .map(Value::Timestamp)
                .ok_or_else(|| conversion(value, "google.protobuf.Timestamp")),
            _ => Err(conversion(value, "google.protobuf.Timestamp")),
        },
        "duration" => match value {
            Value::Duration(_) => Ok(value.clone()),
            Value::String(text) => time::parse_duration(text)
                .map(Value::Duration)
                .ok_or_else(|| conversion(value, "google.protobuf.Duration")),
            _ => Err(conversion(value, "google.protobuf.Duration")),
        },
        _ => Err(EvalError::no_overload()),
    }
}

fn to_int<'a>(value: &Value<'a>) -> Eval<'a> {
    Ok(Value::Int(match value {
        Value::Int(value) => *value,
        Value::Uint(value) => i64::try_from(*value).map_err(|_| int_overflow())?,
        // The bounds of 64 bits are no doubles; cel-go leaves them out.
        Value::Double(value)
            if *value > -9.223_372_036_854_776e18 && *value < 9.223_372_036_854_776e18 =>
        {
            *value as i64
        }
        Value::Double(_) => return Err(int_overflow()),
        Value::String(text) => parse_int(text).ok_or_else(|| conversion(value, "int"))?,
        Value::Timestamp(at) => at.seconds(),
        Value::Duration(nanos) => *nanos,
        _ => return Err(conversion(value, "int")),
    }))
}

fn parse_int(text: &str) -> Option<i64> {
    text.parse().ok()
}

fn to_uint<'a>(value: &Value<'a>) -> Eval<'a> {
    Ok(Value::Uint(match value {
        Value::Uint(value) => *value,
        Value::Int(value) => u64::try_from(*value).map_err(|_| uint_overflow())?,
        Value::Double(value) if *value >= 0.0 && *value < 18446744073709551616.0 => *value as u64,
        Value::Double(_) => return Err(uint_overflow()),
        Value::String(text) => text.parse().map_err(|_| conversion(value, "uint"))?,
        _ => return Err(conversion(value, "uint")),
    }))
}

fn to_double<'a>(value: &Value<'a>) -> Eval<'a> {
    Ok(Value::Double(match value {
        Value::Double(value) => *value,
        Value::Int(value) => *value as f64,
        Value::Uint(value) => *value as f64,
        Value::String(text) => text.parse().map_err(|_| conversion(value, "double"))?,
        _ => return Err(conversion(value, "double")),
    }))
}

fn to_string<'a>(value: &Value<'a>, budget: &mut Budget) -> Eval<'a> {
    Ok(match value {
        Value::String(_) => value.clone(),
        Value::Int(value) => Value::string(value.to_string()),
        Value::Uint(value) => Value::string(value.to_string()),
        Value::Double(value) => Value::string(strings::double_to_string(*value)),
        Value::Bool(value) => Value::string(value.to_string()),
        Value::Timestamp(at) => Value::string(time::format_timestamp(*at)),
        Value::Duration(nanos) => Value::string(time::format_duration(*nanos)),
        Value::Ip(ip) => Value::string(ip.to_string()),
        Value::Cidr(cidr) => Value::string(cidr.to_string()),
        Value::Bytes(bytes) => {
            budget.allocate(bytes.len())?;
            match std::str::from_utf8(bytes) {
                Ok(text) => Value::string(text),
                Err(_) => {
                    return Err(EvalError::new("invalid UTF-8 in bytes, cannot convert to string"));
                }
            }
        }
        _ => return Err(conversion(value, "string")),
    })
}
