//! Writes GGUF files field by field, right ones and wrong ones.

/// A file put together by hand. Counts follow the entries unless a case changes them.
#[derive(Clone)]
pub struct Raw {
    pub start: Vec<u8>,
    pub n_tensors: u64,
    pub n_keys: u64,
    pub keys: Vec<u8>,
    pub infos: Vec<u8>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

impl Raw {
    /// Nothing at all.
    pub fn empty() -> Self {
        let (keys, infos, data) = (Vec::new(), Vec::new(), Vec::new());
        Raw { start: b"GGUF\x03\0\0\0".into(), n_tensors: 0, n_keys: 0, keys, infos, alignment: 32, data }
    }

    /// One key, no tensor.
    pub fn new() -> Self {
        Raw::empty().key(b"k", 4, &[1, 0, 0, 0])
    }

    /// One key and two tensors of 4 and 8 bytes at 0 and 32.
    pub fn two() -> Self {
        Raw::new().info(b"a", &[1], 0, 0).info(b"b", &[2], 0, 32).data(64)
    }

    pub fn start(mut self, start: &[u8]) -> Self {
        self.start = start.into();
        self
    }

    pub fn key(mut self, key: &[u8], value_type: u32, value: &[u8]) -> Self {
        self.keys.extend(string(key));
        self.keys.extend(value_type.to_le_bytes());
        self.keys.extend(value);
        self.n_keys += 1;
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key.as_bytes(), 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.key(key.as_bytes(), 6, &value.to_le_bytes())
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.key(key.as_bytes(), 8, &string(value.as_bytes()))
    }

    pub fn u32s(self, key: &str, values: &[u32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.key(key.as_bytes(), 9, &array(4, values.len() as u64, &elements))
    }

    /// `ne` is innermost first, as in the file.
    pub fn info(mut self, name: &[u8], ne: &[u64], type_id: u32, offset: u64) -> Self {
        self.infos.extend(string(name));
        self.infos.extend((ne.len() as u32).to_le_bytes());
        ne.iter().for_each(|n| self.infos.extend(n.to_le_bytes()));
        self.infos.extend(type_id.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.n_tensors += 1;
        self
    }

    /// A tensor of F32 after those before it, with its values.
    pub fn f32s(mut self, name: &str, ne: &[u64], values: &[f32]) -> Self {
        let offset = self.data.len().next_multiple_of(self.alignment);
        self = self.info(name.as_bytes(), ne, 0, offset as u64);
        self.data.resize(offset, 0);
        self.data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        self
    }

    pub fn data(mut self, len: usize) -> Self {
        self.data = vec![7; len];
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = self.start.clone();
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_keys.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.infos);
        if !self.infos.is_empty() || !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out.extend(&self.data);
        out
    }
}

impl From<Raw> for Vec<u8> {
    fn from(raw: Raw) -> Self {
        raw.build()
    }
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub fn array(element_type: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&element_type.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}
