//! Whether a type fits where another is wanted, with what that says of unknown types.
//!
//! Work is counted: types can share parts so that walking one takes exponential time.

use crate::types::Type;

/// Steps of comparing and replacing types in one expression.
const STEPS_MAX: usize = 2_000_000;

#[derive(Default)]
pub(crate) struct Unifier {
    known: Vec<Option<Type>>,
    /// What `known` was before each change, to undo an attempt.
    undo: Vec<(usize, Option<Type>)>,
    steps: usize,
}

impl Unifier {
    pub(crate) fn fresh(&mut self) -> Type {
        self.known.push(None);
        Type::Var(self.known.len() - 1)
    }

    pub(crate) fn exhausted(&self) -> bool {
        self.steps > STEPS_MAX
    }

    /// Whether all pairs fit; if not, nothing was learned.
    pub(crate) fn fits_all<'t>(
        &mut self,
        pairs: impl IntoIterator<Item = (&'t Type, &'t Type)>,
    ) -> bool {
        let mark = self.undo.len();
        for (a, b) in pairs {
            if !self.fit(a, b) {
                while self.undo.len() > mark {
                    if let Some((index, before)) = self.undo.pop() {
                        self.known[index] = before;
                    }
                }
                return false;
            }
        }
        true
    }

    pub(crate) fn fits(&mut self, a: &Type, b: &Type) -> bool {
        self.fits_all([(a, b)])
    }

    fn fit(&mut self, a: &Type, b: &Type) -> bool {
        self.steps += 1;
        if self.exhausted() {
            return true;
        }
        if let Type::Var(var) = b {
            let (fits, known) = self.substitute(a, b, *var);
            if fits || known {
                return fits;
            }
        }
        if let Type::Var(var) = a {
            return self.substitute(b, a, *var).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => matches!(
                other,
                Type::Null
                    | Type::Opaque(_)
                    | Type::Optional(_)
                    | Type::Object(_)
                    | Type::Duration
                    | Type::Timestamp
            ),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.fit(a, b)
            }
            (Type::Map(a), Type::Map(b)) => self.fit(&a.0, &b.0) && self.fit(&a.1, &b.1),
            _ => a == b,
        }
    }

    /// Tries `wanted` for a variable: whether it fits, and whether the variable was known.
    fn substitute(&mut self, wanted: &Type, itself: &Type, var: usize) -> (bool, bool) {
        if wanted == itself {
            return (true, true);
        }
        if let Some(known) = self.known[var].clone() {
            if *wanted == known {
                return (true, true);
            }
            if !self.fit(wanted, &known) {
                return (false, true);
            }
            let general = if self.as_general(wanted, &known) { wanted.clone() } else { known };
            if !self.occurs(var, &general) {
                self.learn(var, general);
            }
            return (true, true);
        }
        if self.occurs(var, wanted) {
            return (false, false);
        }
        self.learn(var, wanted.clone());
        (true, false)
    }

    fn learn(&mut self, var: usize, ty: Type) {
        self.undo.push((var, self.known[var].replace(ty)));
    }

    fn occurs(&mut self, var: usize, within: &Type) -> bool {
        self.steps += 1;
        if self.exhausted() {
            return true;
        }
        match within {
            Type::Var(other) if *other == var => true,
            Type::Var(other) => match self.known[*other].clone() {
                Some(known) => self.occurs(var, &known),
                None => false,
            },
            Type::List(inner) | Type::Optional(inner) | Type::Type(Some(inner)) => {
                self.occurs(var, inner)
            }
            Type::Map(entry) => self.occurs(var, &entry.0) || self.occurs(var, &entry.1),
            _ => false,
        }
    }

    /// Whether `a` is as general as `b`, or more.
    pub(crate) fn as_general(&mut self, a: &Type, b: &Type) -> bool {
        self.steps += 1;
        if self.exhausted() {
            return true;
        }
        match (a, b) {
            (Type::Dyn | Type::Var(_), _) => true,
            (_, Type::Dyn | Type::Var(_)) => false,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.as_general(a, b)
            }
            (Type::Map(a), Type::Map(b)) => {
                self.as_general(&a.0, &b.0) && self.as_general(&a.1, &b.1)
            }
            (Type::Type(_), Type::Type(_)) => true,
            _ => a == b,
        }
    }

    /// The type with what is known put in; unknown parts become `dyn` in the end.
    pub(crate) fn resolve(&mut self, ty: &Type, finally: bool) -> Type {
        self.steps += 1;
        if self.exhausted() {
            return Type::Dyn;
        }
        match ty {
            Type::Var(var) => match self.known[*var].clone() {
                Some(known) => self.resolve(&known, finally),
                None if finally => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(inner) => Type::list(self.resolve(inner, finally)),
            Type::Optional(inner) => Type::optional(self.resolve(inner, finally)),
            Type::Type(Some(inner)) => Type::Type(Some(self.resolve(inner, finally).into())),
            Type::Map(entry) => {
                let key = self.resolve(&entry.0, finally);
                Type::map(key, self.resolve(&entry.1, finally))
            }
            _ => ty.clone(),
        }
    }

    /// A declared type with fresh variables for its parameters.
    pub(crate) fn instance(ty: &Type, params: &[(char, Type)]) -> Type {
        let inner = |ty: &Type| Self::instance(ty, params);
        match ty {
            Type::Param(name) => {
                let found = params.iter().find(|(param, _)| param == name);
                found.map_or(Type::Dyn, |(_, ty)| ty.clone())
            }
            Type::List(element) => Type::list(inner(element)),
            Type::Optional(element) => Type::optional(inner(element)),
            Type::Type(Some(element)) => Type::Type(Some(inner(element).into())),
            Type::Map(entry) => Type::map(inner(&entry.0), inner(&entry.1)),
            _ => ty.clone(),
        }
    }
}
