//! Manifests: YAML documents, one resource each, with `kind: Service`, `Workload` or `Node` and the fields of
//! `storage_schema::resource`. JSON is YAML, so what `holdfast get -o json` prints for one resource can be applied.
//!
//! Everything that is wrong is said in one line that names the file, the line, the document and the field. Each
//! document is read twice: once for its shape, which tells the kind (wherever it stands) and the line of every field,
//! and once as a resource of that kind. The lines are kept, so that what the agent says about a field of a transaction
//! can be said about a line of a file.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_saphyr::{MessageFormatter as _, Spanned, UserMessageFormatter};
use storage_schema::resource::{Kind, Resource};

/// One document of a manifest.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it says.
    pub resource: Resource,
    origin: Origin,
    shape: Node,
}

/// Which document of which file.
#[derive(Clone, Debug)]
struct Origin {
    file: Arc<str>,
    /// Counted from 1 as people count `---` separated documents, empty ones left out.
    number: usize,
    /// The document's first line with content, counted from 1.
    line: u64,
}

/// Something wrong in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    /// The file, as it was named on the command line.
    pub file: String,
    /// The line, counted from 1.
    pub line: u64,
    /// Which document of the file, counted from 1.
    pub document: usize,
    /// The field's path within the document (`ports[0].targetPort`); empty if the document as a whole is meant.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: document {}: ", self.file, self.line, self.document)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Reads all documents of a manifest, or says what is wrong with each that cannot be read.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Vec<ManifestError>> {
    let file: Arc<str> = file.into();
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for (index, chunk) in split(text).into_iter().enumerate() {
        let origin = Origin { file: Arc::clone(&file), number: index + 1, line: chunk.content_line };
        match parse_document(&chunk, &origin) {
            Ok((resource, shape)) => documents.push(Document { resource, origin, shape }),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(documents) } else { Err(errors) }
}

impl Document {
    /// An error about a field of this document, found by somebody else. The field is a path as the manifest spells it.
    pub fn error(&self, field: &str, message: impl Into<String>) -> ManifestError {
        self.origin.error(self.shape.line_of(field).unwrap_or(self.origin.line), field, message)
    }

    /// Where the document begins: `bookinfo.yaml:12`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.origin.file, self.origin.line)
    }
}

impl Origin {
    fn error(&self, line: u64, field: &str, message: impl Into<String>) -> ManifestError {
        ManifestError {
            file: self.file.to_string(),
            line,
            document: self.number,
            field: field.to_owned(),
            message: message.into(),
        }
    }
}

/// The text of one document.
struct Chunk<'a> {
    text: &'a str,
    /// How many lines of the file are before the text.
    lines_before: u64,
    content_line: u64,
}

/// Cuts a stream at its document markers. YAML forbids `---` at the start of a line everywhere else, even in a block
/// scalar, so lines suffice to find them. Chunks without content are left out.
fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut start = (0, 0);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker {
            push_chunk(&mut chunks, &text[start.0..offset], start.1);
            start = (offset, number as u64);
        }
        offset += line.len();
    }
    push_chunk(&mut chunks, &text[start.0..], start.1);
    chunks
}

fn push_chunk<'a>(chunks: &mut Vec<Chunk<'a>>, text: &'a str, lines_before: u64) {
    let is_content = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        !(line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "...")
    };
    if let Some(first) = text.lines().position(is_content) {
        chunks.push(Chunk { text, lines_before, content_line: lines_before + first as u64 + 1 });
    }
}

fn parse_document(chunk: &Chunk<'_>, origin: &Origin) -> Result<(Resource, Node), ManifestError> {
    let unreadable = |error: &serde_saphyr::Error, field: &str, shape: Option<&Node>| {
        let line = match error.location() {
            Some(location) if location.line() > 0 => location.line() + chunk.lines_before,
            _ => shape.and_then(|shape| shape.line_of(field)).unwrap_or(origin.line),
        };
        origin.error(line, field, describe(error.without_snippet()))
    };
    let mut shape: Node = serde_saphyr::from_str(chunk.text).map_err(|error| unreadable(&error, "", None))?;
    shape.shift(chunk.lines_before);
    let kind = kind_of(&shape, origin)?;

    let mut path = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str(chunk.text, |deserializer| {
        let mut track = serde_path_to_error::Track::new();
        let document = serde_path_to_error::Deserializer::new(WithoutKind(deserializer), &mut track);
        let resource = match kind {
            Kind::Service => Deserialize::deserialize(document).map(Resource::Service),
            Kind::Workload => Deserialize::deserialize(document).map(Resource::Workload),
            Kind::Node => Deserialize::deserialize(document).map(Resource::Node),
        };
        path = track.path().to_string();
        resource
    });
    match parsed {
        Ok(resource) => Ok((resource, shape)),
        Err(error) => Err(unreadable(&error, if path == "." { "" } else { &path }, Some(&shape))),
    }
}

fn kind_of(shape: &Node, origin: &Origin) -> Result<Kind, ManifestError> {
    let Node::Mapping(entries) = shape else {
        let message = "must be a mapping with a `kind` and the fields of that kind";
        return Err(origin.error(origin.line, "", message));
    };
    let Some(entry) = entries.iter().find(|entry| entry.key == "kind") else {
        return Err(origin.error(origin.line, "kind", "is required: Service, Workload or Node"));
    };
    match &entry.value {
        Node::Text(text) => Kind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            origin.error(entry.line, "kind", format!("must be Service, Workload or Node, not `{}`", one_line(text)))
        }),
        _ => Err(origin.error(entry.line, "kind", "must be Service, Workload or Node")),
    }
}

/// What is wrong, in words for people who write manifests and not Rust.
fn describe(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error {
        Error::InvalidScalar { ty: "u16", .. } => "must be a number from 1 to 65535".to_owned(),
        Error::InvalidScalar { ty: "u32", .. } => format!("must be a number from 0 to {}", u32::MAX),
        Error::Unexpected { expected: "sequence start", .. } => "must be a list".to_owned(),
        Error::Unexpected { expected: "mapping start", .. } => "must be a mapping".to_owned(),
        Error::Unexpected { expected: "string scalar", .. } => "must be a text".to_owned(),
        Error::Budget { .. } => "is too large or too complex (aliases are counted where they are used)".to_owned(),
        error => one_line(&UserMessageFormatter.format_message(error)),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The shape of a document: the line of every field, counted in the file.
#[derive(Clone, Debug)]
enum Node {
    Mapping(Vec<Entry>),
    Sequence(Vec<(u64, Self)>),
    Text(String),
    Other,
}

#[derive(Clone, Debug)]
struct Entry {
    key: String,
    line: u64,
    value: Node,
}

impl Node {
    fn shift(&mut self, lines: u64) {
        match self {
            Self::Mapping(entries) => entries.iter_mut().for_each(|entry| {
                entry.line += lines;
                entry.value.shift(lines);
            }),
            Self::Sequence(elements) => elements.iter_mut().for_each(|(line, element)| {
                *line += lines;
                element.shift(lines);
            }),
            Self::Text(_) | Self::Other => {}
        }
    }

    /// The line of the field with this path, or of the nearest one around it that is there.
    fn line_of(&self, path: &str) -> Option<u64> {
        let mut found = None;
        let mut node = self;
        for segment in path.split(['.', '[']).filter(|segment| !segment.is_empty()) {
            let next = match (node, segment.strip_suffix(']')) {
                (Self::Sequence(elements), Some(index)) => {
                    index.parse().ok().and_then(|index: usize| elements.get(index)).map(|(line, node)| (*line, node))
                }
                (Self::Mapping(entries), None) => {
                    entries.iter().find(|entry| entry.key == segment).map(|entry| (entry.line, &entry.value))
                }
                _ => None,
            };
            let Some((line, inner)) = next else { break };
            found = Some(line);
            node = inner;
        }
        found
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Node, A::Error> {
        let mut all = Vec::new();
        while let Some(element) = elements.next_element::<Spanned<Node>>()? {
            all.push((element.referenced.line(), element.value));
        }
        Ok(Node::Sequence(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut all = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let value = entries.next_value()?;
            all.push(Entry { key: key.value, line: key.referenced.line(), value });
        }
        Ok(Node::Mapping(all))
    }
}

/// A document as the struct of its kind sees it: without `kind`, which that struct would refuse as unknown.
struct WithoutKind<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for WithoutKind<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_struct(name, fields, VisitWithoutKind(visitor))
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct VisitWithoutKind<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for VisitWithoutKind<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(EntriesWithoutKind(entries))
    }
}

struct EntriesWithoutKind<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for EntriesWithoutKind<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.0.next_key::<String>()? {
            if key != "kind" {
                return seed.deserialize(IntoDeserializer::<A::Error>::into_deserializer(key)).map(Some);
            }
            self.0.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}
