//! Types: what the checker reasons about, and declarations of data with their sizes.
//!
//! A `Decl` says how a JSON value is to be read (a date-time string is a timestamp) and how
//! large it may be, which the cost estimate needs. It knows nothing of OpenAPI.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// The largest request, in bytes: the bound of what has no bound of its own.
pub const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// What upstream counts for values that have one size, and for the keys of maps.
const SIZE_SCALAR: u64 = 0;

#[derive(Clone, Debug)]
pub enum Type {
    /// Stands where a mistake was reported, so that no second one follows.
    Error,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    /// The type of types.
    Type(Option<Arc<Type>>),
    Object(Arc<Object>),
    /// A type of a library, such as `kubernetes.Quantity`.
    Opaque(&'static str),
    /// A parameter of an overload's declaration.
    Param(char),
    /// A type not known yet.
    Var(usize),
}

impl Type {
    pub fn list(element: Type) -> Self {
        Type::List(Arc::new(element))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Type::Map(Arc::new((key, value)))
    }

    pub fn optional(inner: Type) -> Self {
        Type::Optional(Arc::new(inner))
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// Whether values have one size, known without looking at them.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Type::Bool
            | Type::Int
            | Type::Uint
            | Type::Double
            | Type::Timestamp
            | Type::Duration => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a == b,
            (Type::Map(a), Type::Map(b)) => a == b,
            (Type::Type(a), Type::Type(b)) => a == b,
            (Type::Object(a), Type::Object(b)) => a.name == b.name,
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Param(a), Type::Param(b)) => a == b,
            (Type::Var(a), Type::Var(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Error => "!error!",
            Type::Dyn => "dyn",
            Type::Null => "null",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "timestamp",
            Type::Duration => "duration",
            Type::List(element) => return write!(f, "list({element})"),
            Type::Map(entry) => return write!(f, "map({}, {})", entry.0, entry.1),
            Type::Optional(inner) => return write!(f, "optional_type({inner})"),
            Type::Type(Some(inner)) => return write!(f, "type({inner})"),
            Type::Type(None) => "type",
            Type::Object(object) => &object.name,
            Type::Opaque(name) => name,
            Type::Param(name) => return write!(f, "{name}"),
            Type::Var(index) => return write!(f, "_var{index}"),
        })
    }
}

/// An object with known fields.
#[derive(Debug)]
pub struct Object {
    pub(crate) name: String,
    /// By the name an expression uses, which is the escaped one.
    pub(crate) fields: HashMap<String, Field>,
    /// Whether an expression may select fields that are not declared.
    pub(crate) open: bool,
}

#[derive(Debug)]
pub(crate) struct Field {
    /// As it stands in the data.
    pub(crate) raw: String,
    pub(crate) decl: Decl,
}

impl Object {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }
}

/// How the elements of a list are told apart; it rules equality and `+`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// Elements are objects with these keys (as in the data).
    Map(Vec<String>),
}

#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// Read as the data is.
    Plain,
    Double,
    Bytes,
    Timestamp,
    Duration,
    List {
        items: Arc<Decl>,
        kind: ListKind,
    },
    Map {
        values: Arc<Decl>,
        /// Whether the estimate knows the size of an entry that is selected like a field.
        by_name: bool,
    },
    Object(Arc<Object>),
}

/// A declaration of data: its type, how JSON is read as it, and its largest size.
#[derive(Clone, Debug)]
pub struct Decl {
    ty: Type,
    pub(crate) shape: Shape,
    /// Elements, entries or bytes; none if it is no measure of this type.
    max_size: Option<u64>,
    /// The fewest bytes it takes in JSON.
    min_bytes: u64,
}

/// The format of a string that is no string to expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Bytes,
    Date,
    DateTime,
    Duration,
}

static DYN: LazyLock<Decl> = LazyLock::new(Decl::any);

impl Decl {
    fn simple(ty: Type, shape: Shape, max_size: Option<u64>, min_bytes: u64) -> Self {
        Self { ty, shape, max_size, min_bytes }
    }

    /// Data without a declaration; checked when it is used.
    pub fn any() -> Self {
        Self::simple(Type::Dyn, Shape::Plain, None, 1)
    }

    pub(crate) fn any_ref() -> &'static Self {
        &DYN
    }

    /// The same data, of so many elements, entries or bytes at most.
    pub fn at_most(mut self, size: u64) -> Self {
        self.max_size = Some(size);
        self
    }

    /// The same map, of whose entries the estimate knows the size when they are selected like
    /// fields. Upstream knows that of the attributes of devices and of no other map.
    pub fn by_name(mut self) -> Self {
        if let Shape::Map { by_name, .. } = &mut self.shape {
            *by_name = true;
        }
        self
    }

    /// `x-kubernetes-int-or-string`.
    pub fn int_or_string(max_length: Option<u64>) -> Self {
        let max = max_length.map_or(REQUEST_BYTES_MAX - 2, |length| length.saturating_mul(4));
        Self::simple(Type::Dyn, Shape::Plain, Some(max), 1)
    }

    pub fn bool() -> Self {
        Self::simple(Type::Bool, Shape::Plain, Some(SIZE_SCALAR), 4)
    }

    pub fn int() -> Self {
        Self::simple(Type::Int, Shape::Plain, Some(SIZE_SCALAR), 1)
    }

    pub fn double() -> Self {
        Self::simple(Type::Double, Shape::Double, Some(SIZE_SCALAR), 1)
    }

    /// A string of so many characters, or one of these values.
    pub fn string(max_length: Option<u64>, longest_of_enum: Option<u64>) -> Self {
        let max = match (max_length, longest_of_enum) {
            // A character takes up to four bytes.
            (Some(length), _) => length.saturating_mul(4),
            (None, Some(longest)) => longest,
            (None, None) => REQUEST_BYTES_MAX - 2,
        };
        Self::simple(Type::String, Shape::Plain, Some(max), 2)
    }

    pub fn formatted(format: Format, max_length: Option<u64>) -> Self {
        match format {
            Format::Bytes => {
                let max = max_length.unwrap_or(REQUEST_BYTES_MAX - 2);
                Self::simple(Type::Bytes, Shape::Bytes, Some(max), 2)
            }
            Format::Date => Self::simple(Type::Timestamp, Shape::Timestamp, Some(12), 12),
            Format::DateTime => Self::simple(Type::Timestamp, Shape::Timestamp, Some(32), 21),
            Format::Duration => Self::simple(Type::Duration, Shape::Duration, Some(32), 3),
        }
    }

    pub fn list(items: Decl, kind: ListKind, max_items: Option<u64>) -> Self {
        let fit = (REQUEST_BYTES_MAX - 2) / (items.min_bytes.saturating_add(1));
        let ty = Type::list(items.ty.clone());
        let shape = Shape::List { items: Arc::new(items), kind };
        Self::simple(ty, shape, Some(max_items.unwrap_or(fit)), 2)
    }

    pub fn map(values: Decl, max_properties: Option<u64>) -> Self {
        let fit = (REQUEST_BYTES_MAX - 2) / (values.min_bytes.saturating_add(6));
        let ty = Type::map(Type::String, values.ty.clone());
        let shape = Shape::Map { values: Arc::new(values), by_name: false };
        Self::simple(ty, shape, Some(max_properties.unwrap_or(fit)), 2)
    }

    /// An object; `name` tells it from all others of an environment. A field whose name no
    /// expression can spell is left out.
    pub fn object(name: &str, fields: impl IntoIterator<Item = FieldDecl>) -> Self {
        Self::build(name, fields, false)
    }

    /// An object that may have more fields than are declared; the others are `dyn`.
    pub fn open_object(name: &str, fields: impl IntoIterator<Item = FieldDecl>) -> Self {
        Self::build(name, fields, true)
    }

    fn build(name: &str, fields: impl IntoIterator<Item = FieldDecl>, open: bool) -> Self {
        let mut min_bytes: u64 = 2;
        let mut declared = HashMap::new();
        for FieldDecl { name, decl, always_sent } in fields {
            if always_sent {
                let bytes = (name.len() as u64).saturating_add(decl.min_bytes).saturating_add(4);
                min_bytes = min_bytes.saturating_add(bytes);
            }
            if let Some(escaped) = escape(&name) {
                declared.insert(escaped, Field { raw: name, decl });
            }
        }
        let object = Arc::new(Object { name: name.to_owned(), fields: declared, open });
        let shape = Shape::Object(object.clone());
        Self::simple(Type::Object(object), shape, Some(SIZE_SCALAR), min_bytes)
    }

    /// A value that is not read from JSON, such as an authorizer or an optional.
    pub fn of(ty: Type) -> Self {
        Self::simple(ty, Shape::Plain, None, 1)
    }

    /// The same data, perhaps absent: a value of the optional type.
    pub fn optional(inner: Decl) -> Self {
        let ty = Type::optional(inner.ty.clone());
        Self { ty, ..inner }
    }

    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// The largest size, in elements, entries or bytes.
    pub fn max_size(&self) -> Option<u64> {
        self.max_size
    }

    /// The declaration one step down a path of the cost estimate.
    pub(crate) fn step(&self, name: &str) -> Option<&Decl> {
        match (&self.shape, name) {
            (Shape::List { items, .. }, "@items") => Some(items),
            (Shape::Map { values, .. }, "@values") => Some(values),
            (Shape::Map { .. }, "@keys") => Some(&MAP_KEY),
            (Shape::Map { values, by_name: true }, _) => Some(values),
            (Shape::Object(object), _) => object.field(name).map(|field| &field.decl),
            _ => None,
        }
    }
}

static MAP_KEY: LazyLock<Decl> =
    LazyLock::new(|| Decl::simple(Type::String, Shape::Plain, Some(SIZE_SCALAR), 2));

/// A field of an object.
pub struct FieldDecl {
    /// As it stands in the data.
    pub name: String,
    pub decl: Decl,
    /// Required and without a default, so that it counts for the fewest bytes.
    pub always_sent: bool,
}

impl FieldDecl {
    pub fn new(name: &str, decl: Decl) -> Self {
        Self { name: name.to_owned(), decl, always_sent: false }
    }
}

const KEYWORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name by which expressions select a property, if they can.
pub fn escape(name: &str) -> Option<String> {
    let mut bytes = name.bytes();
    let first = bytes.next()?;
    let legal = |b: u8| b == b'_' || b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'/');
    if first.is_ascii_digit() || !legal(first) || !bytes.all(legal) {
        return None;
    }
    if KEYWORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let escaped = name.replace("__", "__underscores__");
    Some(escaped.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

/// The property that an escaped name stands for.
pub fn unescape(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && KEYWORDS.contains(&word)
    {
        return word.to_owned();
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("__") {
        out.push_str(&rest[..at]);
        let escapes =
            [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")];
        match escapes.iter().find(|(escape, _)| rest[at..].starts_with(escape)) {
            Some((escape, plain)) => {
                out.push_str(plain);
                rest = &rest[at + escape.len()..];
            }
            None => {
                out.push_str("__");
                rest = &rest[at + 2..];
            }
        }
    }
    out.push_str(rest);
    out
}
