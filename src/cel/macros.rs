//! Member calls that are macros: they name variables, so they are not functions.
//!
//! `has` is in the parser. `cel.bind` is for environments that ask for it.

use std::sync::Arc;

use crate::ast::{Expr, Fold, Id, Kind, Macro};
use crate::parser::Parser;
use crate::source::CompileError;

/// The node for `target.name(args)`: a macro's, or a plain call.
pub(crate) fn expand_member(
    parser: &Parser<'_>,
    id: Id,
    target: Expr,
    name: Arc<str>,
    args: Vec<Expr>,
) -> Result<Kind, Box<CompileError>> {
    use Macro::*;
    if parser.binds
        && &*name == "bind"
        && matches!(&target.kind, Kind::Ident(it) if &**it == "cel")
        && let Ok([name, value, body]) = <[Expr; 3]>::try_from(args.clone())
    {
        let var = variable(parser, &name, Bind, 1)?;
        let fold = Fold { kind: Bind, range: value, var, var2: None, condition: None, body };
        return Ok(Kind::Fold(Box::new(fold)));
    }
    let (kind, variables) = match (&*name, args.len()) {
        ("all", 2) => (All, 1),
        ("exists", 2) => (Exists, 1),
        ("exists_one" | "existsOne", 2) => (ExistsOne, 1),
        ("map", 2 | 3) => (Map, 1),
        ("filter", 2) => (Filter, 1),
        ("optMap", 2) => (OptMap, 1),
        ("optFlatMap", 2) => (OptFlatMap, 1),
        ("sortBy", 2) => (SortBy, 1),
        ("all", 3) => (All, 2),
        ("exists", 3) => (Exists, 2),
        ("exists_one" | "existsOne", 3) => (ExistsOne, 2),
        ("transformList", 3 | 4) => (Map, 2),
        ("transformMap", 3 | 4) => (TransformMap, 2),
        ("transformMapEntry", 3 | 4) => (TransformMapEntry, 2),
        _ => return Ok(Kind::Call { name, target: Some(Box::new(target)), args }),
    };
    if kind == SortBy
        && matches!(target.kind, Kind::Literal(_) | Kind::Map(_) | Kind::Struct { .. })
    {
        let message = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
        return Err(parser.error(target.id, message));
    }
    let mut args = args.into_iter();
    let mut names = Vec::new();
    for arg in args.by_ref().take(variables) {
        names.push(variable(parser, &arg, kind, variables)?);
        if names.len() == 2 && names[0] == names[1] {
            let message = format!("duplicate variable name: {}", names[0]);
            return Err(parser.error(arg.id, message));
        }
    }
    let mut rest: Vec<Expr> = args.collect();
    let missing = || parser.error(id, "macro lacks an argument");
    let body = rest.pop().ok_or_else(missing)?;
    let condition = rest.pop();
    let mut names = names.into_iter();
    let var = names.next().ok_or_else(missing)?;
    Ok(Kind::Fold(Box::new(Fold { kind, range: target, var, var2: names.next(), condition, body })))
}

fn variable(
    parser: &Parser<'_>,
    arg: &Expr,
    kind: Macro,
    variables: usize,
) -> Result<Arc<str>, Box<CompileError>> {
    let Kind::Ident(name) = &arg.kind else {
        let message = match kind {
            Macro::Map | Macro::Filter | Macro::SortBy if variables == 1 => {
                "argument is not an identifier"
            }
            Macro::Bind => "cel.bind() variable names must be simple identifiers",
            Macro::OptMap => "optMap() variable name must be a simple identifier",
            Macro::OptFlatMap => "optFlatMap() variable name must be a simple identifier",
            _ => "argument must be a simple name",
        };
        return Err(parser.error(arg.id, message));
    };
    if &**name == "__result__" {
        return Err(parser.error(arg.id, "iteration variable overwrites accumulator variable"));
    }
    Ok(name.clone())
}
