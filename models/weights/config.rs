//! Hyper-parameters that the shapes of tensors cannot tell.

use smalti::Float as _;

/// Hyper-parameters under the keys of the official configurations.
#[derive(Debug, Clone)]
pub struct Config(serde_json::Value);

impl Config {
    /// A count.
    #[must_use]
    pub fn count(&self, key: &str) -> Option<usize> {
        self.0.get(key)?.as_u64()?.try_into().ok()
    }

    /// A number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<f32> {
        self.0.get(key)?.as_f64().map(|number| number.to_f32())
    }

    /// A truth value.
    #[must_use]
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key)?.as_bool()
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text).map(Self)
    }

    /// A text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// What stands under a key.
    #[must_use]
    pub fn at(&self, key: &str) -> Option<Self> {
        self.0.get(key).cloned().map(Self)
    }

    /// These and one more.
    #[must_use]
    pub fn with(self, key: &str, count: usize) -> Self {
        let mut all = match self.0 {
            serde_json::Value::Object(all) => all,
            _ => serde_json::Map::new(),
        };
        all.insert(key.to_owned(), count.into());
        Self(all.into())
    }

    /// A list of lists of counts.
    #[must_use]
    pub fn lists(&self, key: &str) -> Option<Vec<Vec<usize>>> {
        let count = |count: &serde_json::Value| count.as_u64()?.try_into().ok();
        let list = |list: &serde_json::Value| list.as_array()?.iter().map(count).collect();
        self.0.get(key)?.as_array()?.iter().map(list).collect()
    }

    /// A list of configurations.
    #[must_use]
    pub fn list(&self, key: &str) -> Option<Vec<Self>> {
        Some(self.0.get(key)?.as_array()?.iter().cloned().map(Self).collect())
    }

    /// A list of counts.
    #[must_use]
    pub fn counts(&self, key: &str) -> Option<Vec<usize>> {
        self.0.get(key)?.as_array()?.iter().map(|count| count.as_u64()?.try_into().ok()).collect()
    }

    /// A list of texts.
    #[must_use]
    pub fn texts(&self, key: &str) -> Option<Vec<&str>> {
        self.0.get(key)?.as_array()?.iter().map(serde_json::Value::as_str).collect()
    }

    /// A list of numbers.
    #[must_use]
    pub fn numbers(&self, key: &str) -> Option<Vec<f32>> {
        self.0.get(key)?.as_array()?.iter().map(|number| Some(number.as_f64()?.to_f32())).collect()
    }
}

impl std::fmt::Display for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
