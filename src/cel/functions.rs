//! Which functions there are, with the types they take: Kubernetes 1.36's environment.
//!
//! Only declarations; `library` has what they do, `cost` what they cost.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;

pub(crate) struct Function {
    pub(crate) overloads: Vec<Overload>,
}

pub(crate) struct Overload {
    pub(crate) member: bool,
    /// With the target first, if it is a member.
    pub(crate) args: Vec<Type>,
    pub(crate) result: Type,
    /// The parameters that occur in it.
    pub(crate) params: Vec<char>,
}

pub(crate) const IP: &str = "net.IP";
pub(crate) const CIDR: &str = "net.CIDR";
pub(crate) const URL: &str = "kubernetes.URL";
pub(crate) const QUANTITY: &str = "kubernetes.Quantity";
pub(crate) const SEMVER: &str = "kubernetes.Semver";
pub(crate) const FORMAT: &str = "kubernetes.NamedFormat";
pub(crate) const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub(crate) const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
pub(crate) const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
pub(crate) const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
pub(crate) const DECISION: &str = "kubernetes.authorization.Decision";

/// One overload a line: `name (types) result`, or `name target.(types) result`. A line whose
/// name is `"` declares a further overload of the function above.
const DECLARATIONS: &str = "\
_?_:_ (bool A A) A
_&&_ (bool bool) bool
_||_ (bool bool) bool
!_ (bool) bool
-_ (int) int
\" (double) double
_==_ (A A) bool
_!=_ (A A) bool
_+_ (bytes bytes) bytes
\" (double double) double
\" (duration duration) duration
\" (duration timestamp) timestamp
\" (timestamp duration) timestamp
\" (int int) int
\" (list(A) list(A)) list(A)
\" (string string) string
\" (uint uint) uint
_-_ (double double) double
\" (duration duration) duration
\" (int int) int
\" (timestamp duration) timestamp
\" (timestamp timestamp) duration
\" (uint uint) uint
_*_ (double double) double
\" (int int) int
\" (uint uint) uint
_/_ (double double) double
\" (int int) int
\" (uint uint) uint
_%_ (int int) int
\" (uint uint) uint
_[_] (list(A) int) A
\" (map(A,B) A) B
\" (optional(list(A)) int) optional(A)
\" (optional(map(A,B)) A) optional(B)
_[?_] (list(A) int) optional(A)
\" (optional(list(A)) int) optional(A)
\" (map(A,B) A) optional(B)
\" (optional(map(A,B)) A) optional(B)
@in (A list(A)) bool
\" (A map(A,B)) bool
size (bytes) int
\" bytes.() int
\" (list(A)) int
\" list(A).() int
\" (map(A,B)) int
\" map(A,B).() int
\" (string) int
\" string.() int
type (A) type(A)
bool (bool) bool
\" (string) bool
bytes (bytes) bytes
\" (string) bytes
double (double) double
\" (int) double
\" (string) double
\" (uint) double
duration (duration) duration
\" (string) duration
dyn (A) dyn
int (int) int
\" (double) int
\" (duration) int
\" (string) int
\" (timestamp) int
\" (uint) int
string (string) string
\" (bool) string
\" (bytes) string
\" (double) string
\" (duration) string
\" (int) string
\" (timestamp) string
\" (uint) string
\" (net.IP) string
\" (net.CIDR) string
timestamp (timestamp) timestamp
\" (int) timestamp
\" (string) timestamp
uint (uint) uint
\" (double) uint
\" (int) uint
\" (string) uint
matches (string string) bool
\" string.(string) bool
contains string.(string) bool
endsWith string.(string) bool
startsWith string.(string) bool
getFullYear timestamp.() int
\" timestamp.(string) int
getMonth timestamp.() int
\" timestamp.(string) int
getDayOfYear timestamp.() int
\" timestamp.(string) int
getDayOfMonth timestamp.() int
\" timestamp.(string) int
getDate timestamp.() int
\" timestamp.(string) int
getDayOfWeek timestamp.() int
\" timestamp.(string) int
getHours timestamp.() int
\" timestamp.(string) int
\" duration.() int
getMinutes timestamp.() int
\" timestamp.(string) int
\" duration.() int
getSeconds timestamp.() int
\" timestamp.(string) int
\" duration.() int
getMilliseconds timestamp.() int
\" timestamp.(string) int
\" duration.() int
optional.of (A) optional(A)
optional.ofNonZeroValue (A) optional(A)
optional.none () optional(A)
value optional(A).() A
hasValue optional(A).() bool
or optional(A).(optional(A)) optional(A)
orValue optional(A).(A) A
charAt string.(int) string
indexOf string.(string) int
\" string.(string int) int
\" list(A).(A) int
lastIndexOf string.(string) int
\" string.(string int) int
\" list(A).(A) int
lowerAscii string.() string
upperAscii string.() string
replace string.(string string) string
\" string.(string string int) string
split string.(string) list(string)
\" string.(string int) list(string)
substring string.(int) string
\" string.(int int) string
trim string.() string
format string.(list(dyn)) string
strings.quote (string) string
join list(string).() string
\" list(string).(string) string
isSorted list(int).() bool
\" list(uint).() bool
\" list(double).() bool
\" list(bool).() bool
\" list(duration).() bool
\" list(timestamp).() bool
\" list(string).() bool
\" list(bytes).() bool
sum list(int).() int
\" list(uint).() uint
\" list(double).() double
\" list(duration).() duration
max list(int).() int
\" list(uint).() uint
\" list(double).() double
\" list(bool).() bool
\" list(duration).() duration
\" list(timestamp).() timestamp
\" list(string).() string
\" list(bytes).() bytes
min list(int).() int
\" list(uint).() uint
\" list(double).() double
\" list(bool).() bool
\" list(duration).() duration
\" list(timestamp).() timestamp
\" list(string).() string
\" list(bytes).() bytes
slice list(A).(int int) list(A)
flatten list(list(A)).() list(A)
\" list(dyn).(int) list(dyn)
sort list(int).() list(int)
\" list(uint).() list(uint)
\" list(double).() list(double)
\" list(bool).() list(bool)
\" list(duration).() list(duration)
\" list(timestamp).() list(timestamp)
\" list(string).() list(string)
\" list(bytes).() list(bytes)
@sortKeys (list(int)) bool
\" (list(uint)) bool
\" (list(double)) bool
\" (list(bool)) bool
\" (list(duration)) bool
\" (list(timestamp)) bool
\" (list(string)) bool
\" (list(bytes)) bool
lists.range (int) list(int)
reverse list(A).() list(A)
distinct list(A).() list(A)
sets.contains (list(A) list(A)) bool
sets.equivalent (list(A) list(A)) bool
sets.intersects (list(A) list(A)) bool
find string.(string) string
findAll string.(string) list(string)
\" string.(string int) list(string)
url (string) kubernetes.URL
isURL (string) bool
getScheme kubernetes.URL.() string
getHost kubernetes.URL.() string
getHostname kubernetes.URL.() string
getPort kubernetes.URL.() string
getEscapedPath kubernetes.URL.() string
getQuery kubernetes.URL.() map(string,list(string))
ip (string) net.IP
\" net.CIDR.() net.IP
isIP (string) bool
ip.isCanonical (string) bool
family net.IP.() int
isUnspecified net.IP.() bool
isLoopback net.IP.() bool
isLinkLocalMulticast net.IP.() bool
isLinkLocalUnicast net.IP.() bool
isGlobalUnicast net.IP.() bool
cidr (string) net.CIDR
isCIDR (string) bool
containsIP net.CIDR.(string) bool
\" net.CIDR.(net.IP) bool
containsCIDR net.CIDR.(string) bool
\" net.CIDR.(net.CIDR) bool
prefixLength net.CIDR.() int
masked net.CIDR.() net.CIDR
quantity (string) kubernetes.Quantity
isQuantity (string) bool
sign kubernetes.Quantity.() int
isGreaterThan kubernetes.Quantity.(kubernetes.Quantity) bool
\" kubernetes.Semver.(kubernetes.Semver) bool
isLessThan kubernetes.Quantity.(kubernetes.Quantity) bool
\" kubernetes.Semver.(kubernetes.Semver) bool
compareTo kubernetes.Quantity.(kubernetes.Quantity) int
\" kubernetes.Semver.(kubernetes.Semver) int
asApproximateFloat kubernetes.Quantity.() double
asInteger kubernetes.Quantity.() int
isInteger kubernetes.Quantity.() bool
add kubernetes.Quantity.(kubernetes.Quantity) kubernetes.Quantity
\" kubernetes.Quantity.(int) kubernetes.Quantity
sub kubernetes.Quantity.(kubernetes.Quantity) kubernetes.Quantity
\" kubernetes.Quantity.(int) kubernetes.Quantity
semver (string) kubernetes.Semver
\" (string bool) kubernetes.Semver
isSemver (string) bool
\" (string bool) bool
major kubernetes.Semver.() int
minor kubernetes.Semver.() int
patch kubernetes.Semver.() int
validate kubernetes.NamedFormat.(string) optional(list(string))
format.named (string) optional(kubernetes.NamedFormat)
format.dns1123Label () kubernetes.NamedFormat
format.dns1123Subdomain () kubernetes.NamedFormat
format.dns1035Label () kubernetes.NamedFormat
format.qualifiedName () kubernetes.NamedFormat
format.dns1123LabelPrefix () kubernetes.NamedFormat
format.dns1123SubdomainPrefix () kubernetes.NamedFormat
format.dns1035LabelPrefix () kubernetes.NamedFormat
format.labelValue () kubernetes.NamedFormat
format.uri () kubernetes.NamedFormat
format.uuid () kubernetes.NamedFormat
format.byte () kubernetes.NamedFormat
format.date () kubernetes.NamedFormat
format.datetime () kubernetes.NamedFormat
path kubernetes.authorization.Authorizer.(string) kubernetes.authorization.PathCheck
group kubernetes.authorization.Authorizer.(string) kubernetes.authorization.GroupCheck
serviceAccount kubernetes.authorization.Authorizer.(string string) kubernetes.authorization.Authorizer
resource kubernetes.authorization.GroupCheck.(string) kubernetes.authorization.ResourceCheck
subresource kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
namespace kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
name kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
fieldSelector kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
labelSelector kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
check kubernetes.authorization.PathCheck.(string) kubernetes.authorization.Decision
\" kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.Decision
errored kubernetes.authorization.Decision.() bool
error kubernetes.authorization.Decision.() string
allowed kubernetes.authorization.Decision.() bool
reason kubernetes.authorization.Decision.() string
jsonpatch.escapeKey (string) string
";

const OPAQUE: [&str; 11] = [
    IP,
    CIDR,
    URL,
    QUANTITY,
    SEMVER,
    FORMAT,
    AUTHORIZER,
    PATH_CHECK,
    GROUP_CHECK,
    RESOURCE_CHECK,
    DECISION,
];

static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(read);

/// The function of a name. `jsonpatch.escapeKey` is there for mutations only.
pub(crate) fn find(name: &str, mutation: bool) -> Option<&'static Function> {
    if name == "jsonpatch.escapeKey" && !mutation {
        return None;
    }
    FUNCTIONS.get(name)
}

fn read() -> HashMap<&'static str, Function> {
    let mut functions: HashMap<&'static str, Function> = HashMap::new();
    let mut current = "";
    for line in DECLARATIONS.lines() {
        let (name, rest) = line.split_once(' ').expect("a declaration has a name and a signature");
        if name != "\"" {
            current = name;
        }
        let overload = signature(rest);
        functions.entry(current).or_insert_with(|| Function { overloads: Vec::new() });
        if let Some(function) = functions.get_mut(current) {
            function.overloads.push(overload);
        }
    }
    for name in ["_<_", "_<=_", "_>_", "_>=_"] {
        functions.insert(name, Function { overloads: comparisons() });
    }
    functions
}

/// What `<` and its like compare: each type with itself, and numbers with each other.
fn comparisons() -> Vec<Overload> {
    let same = [Type::Bool, Type::String, Type::Bytes, Type::Timestamp, Type::Duration];
    let numbers = [Type::Int, Type::Uint, Type::Double];
    let mut pairs: Vec<(Type, Type)> = same.iter().map(|t| (t.clone(), t.clone())).collect();
    for left in &numbers {
        pairs.extend(numbers.iter().map(|right| (left.clone(), right.clone())));
    }
    let overload = |(left, right)| Overload {
        member: false,
        args: vec![left, right],
        result: Type::Bool,
        params: Vec::new(),
    };
    pairs.into_iter().map(overload).collect()
}

fn signature(text: &str) -> Overload {
    let mut reader = Reader { text, params: Vec::new() };
    let member = !reader.text.starts_with('(');
    let mut args = Vec::new();
    if member {
        args.push(reader.ty());
        reader.skip(".");
    }
    reader.skip("(");
    while !reader.text.starts_with(')') {
        args.push(reader.ty());
        reader.skip(" ");
    }
    reader.skip(")");
    reader.skip(" ");
    let result = reader.ty();
    Overload { member, args, result, params: reader.params }
}

struct Reader<'t> {
    text: &'t str,
    params: Vec<char>,
}

impl Reader<'_> {
    fn skip(&mut self, what: &str) {
        self.text = self.text.strip_prefix(what).unwrap_or(self.text);
    }

    fn ty(&mut self) -> Type {
        // Longest first: some names of library types begin like others.
        let opaque = OPAQUE.iter().filter(|name| self.text.starts_with(**name));
        if let Some(name) = opaque.max_by_key(|name| name.len()) {
            self.skip(name);
            return Type::Opaque(name);
        }
        let end = self.text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(end);
        self.text = rest;
        match word {
            "A" | "B" => {
                let param = word.chars().next().unwrap_or('A');
                if !self.params.contains(&param) {
                    self.params.push(param);
                }
                Type::Param(param)
            }
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "timestamp" => Type::Timestamp,
            "duration" => Type::Duration,
            "dyn" => Type::Dyn,
            "list" => Type::list(self.inner()),
            "optional" => Type::optional(self.inner()),
            "type" => Type::Type(Some(self.inner().into())),
            "map" => {
                self.skip("(");
                let key = self.ty();
                self.skip(",");
                let value = self.ty();
                self.skip(")");
                Type::map(key, value)
            }
            _ => unreachable!("no type is called {word:?}"),
        }
    }

    fn inner(&mut self) -> Type {
        self.skip("(");
        let inner = self.ty();
        self.skip(")");
        inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_declaration_reads_back_whole() {
        for line in DECLARATIONS.lines() {
            let (_, rest) = line.split_once(' ').unwrap();
            let mut reader = Reader { text: rest, params: Vec::new() };
            let member = !rest.starts_with('(');
            assert_eq!(signature(rest).member, member, "{line}");
            if member {
                reader.ty();
                assert!(reader.text.starts_with(".("), "{line}");
            }
        }
        assert_eq!(find("flatten", false).unwrap().overloads.len(), 2);
        assert_eq!(find("_<_", false).unwrap().overloads.len(), 14);
        assert!(find("jsonpatch.escapeKey", false).is_none());
    }
}
