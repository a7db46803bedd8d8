//! The functions of lists: Kubernetes' own, cel-go's extension in its version 3, and sets.

use std::cmp::Ordering;

use crate::budget::{Budget, EvalError};
use crate::types::Type;
use crate::value::{List, Value};

type Eval<T> = Result<T, EvalError>;

pub(crate) fn is_sorted(list: &List<'_>, budget: &mut Budget) -> Eval<bool> {
    let mut before: Option<Value<'_>> = None;
    for item in list.iter() {
        budget.work(1)?;
        if let Some(before) = &before
            && before.compare(&item)? == Ordering::Greater
        {
            return Ok(false);
        }
        before = Some(item);
    }
    Ok(true)
}

/// What the sum of nothing is, by the type the checker found.
pub(crate) fn zero(ty: &Type) -> Value<'static> {
    match ty {
        Type::Uint => Value::Uint(0),
        Type::Double => Value::Double(0.0),
        Type::Duration => Value::Duration(0),
        _ => Value::Int(0),
    }
}

pub(crate) fn extreme<'a>(
    list: &List<'a>,
    name: &str,
    wanted: Ordering,
    budget: &mut Budget,
) -> Eval<Value<'a>> {
    let mut best: Option<Value<'a>> = None;
    for item in list.iter() {
        budget.work(1)?;
        best = match best {
            Some(best) if item.compare(&best)? != wanted => Some(best),
            _ => Some(item),
        };
    }
    best.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

pub(crate) fn index_of<'a>(
    list: &List<'a>,
    wanted: &Value<'a>,
    last: bool,
    budget: &mut Budget,
) -> Eval<i64> {
    let mut found = -1;
    for (index, item) in list.iter().enumerate() {
        if item.equals(wanted, budget)? {
            found = i64::try_from(index).unwrap_or(i64::MAX);
            if !last {
                break;
            }
        }
    }
    Ok(found)
}

pub(crate) fn slice<'a>(
    list: &List<'a>,
    start: i64,
    end: i64,
    budget: &mut Budget,
) -> Eval<Value<'a>> {
    let refuse = |why: String| Err(EvalError::new(format!("cannot slice({start}, {end}), {why}")));
    let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(end)) else {
        return refuse("negative indexes not supported".to_owned());
    };
    if from > to {
        return refuse("start index must be less than or equal to end index".to_owned());
    }
    if to > list.len() {
        return refuse(format!("list is length {}", list.len()));
    }
    budget.allocate((to - from).saturating_mul(32))?;
    Ok(Value::list((from..to).filter_map(|index| list.get(index)).collect()))
}

pub(crate) fn flatten<'a>(list: &List<'a>, depth: i64, budget: &mut Budget) -> Eval<Value<'a>> {
    if depth < 0 {
        return Err(EvalError::new("level must be non-negative"));
    }
    let mut out = Vec::new();
    flatten_into(list, depth, &mut out, budget)?;
    Ok(Value::list(out))
}

fn flatten_into<'a>(
    list: &List<'a>,
    depth: i64,
    out: &mut Vec<Value<'a>>,
    budget: &mut Budget,
) -> Eval<()> {
    for item in list.iter() {
        budget.work(1)?;
        match &item {
            Value::List(inner) if depth > 0 => flatten_into(inner, depth - 1, out, budget)?,
            _ => {
                budget.allocate(32)?;
                out.push(item);
            }
        }
    }
    Ok(())
}

pub(crate) fn range<'a>(count: i64, budget: &mut Budget) -> Eval<Value<'a>> {
    budget.allocate(usize::try_from(count).unwrap_or(0).saturating_mul(32))?;
    Ok(Value::list((0..count.max(0)).map(Value::Int).collect()))
}

pub(crate) fn reverse<'a>(list: &List<'a>, budget: &mut Budget) -> Eval<Value<'a>> {
    budget.allocate(list.len().saturating_mul(32))?;
    let indexes = (0..list.len()).rev();
    Ok(Value::list(indexes.filter_map(|index| list.get(index)).collect()))
}

pub(crate) fn distinct<'a>(list: &List<'a>, budget: &mut Budget) -> Eval<Value<'a>> {
    let mut out: Vec<Value<'a>> = Vec::new();
    'items: for item in list.iter() {
        for seen in &out {
            if seen.equals(&item, budget)? {
                continue 'items;
            }
        }
        budget.allocate(32)?;
        out.push(item);
    }
    Ok(Value::list(out))
}

/// Sorts a list by keys that are computed already, one for each element.
pub(crate) fn sort_by<'a>(
    list: &List<'a>,
    keys: Vec<Value<'a>>,
    budget: &mut Budget,
) -> Eval<Value<'a>> {
    budget.allocate(list.len().saturating_mul(96))?;
    budget.work(keys.len())?;
    let first = keys.first().map(Value::type_name).unwrap_or_default().to_owned();
    if keys.iter().any(|key| key.type_name() != first) {
        return Err(EvalError::new("list elements must have the same type"));
    }
    if let Some(key) = keys.first()
        && !matches!(
            key,
            Value::Bool(_)
                | Value::Int(_)
                | Value::Uint(_)
                | Value::Double(_)
                | Value::String(_)
                | Value::Bytes(_)
                | Value::Timestamp(_)
                | Value::Duration(_)
        )
    {
        return Err(EvalError::new("list elements must be comparable"));
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(list.iter()).collect();
    // Values that cannot be ordered (NaN) stay where they are.
    pairs.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, item)| item).collect()))
}

pub(crate) fn contains_all<'a>(
    list: &List<'a>,
    wanted: &List<'a>,
    budget: &mut Budget,
) -> Eval<bool> {
    for item in wanted.iter() {
        if !list.contains(&item, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(crate) fn intersects<'a>(a: &List<'a>, b: &List<'a>, budget: &mut Budget) -> Eval<bool> {
    for item in a.iter() {
        if b.contains(&item, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}
