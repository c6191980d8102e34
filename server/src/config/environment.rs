//! The environment as the source of settings. Collects the errors, so that one start shows all bad values.

use crate::config::parse::{Parse, parse_variable_name};
use crate::config::table;
use crate::escape::escape_control;
use std::ffi::OsString;

/// Variables, and the errors of those that were read.
pub struct Environment<F> {
    variable: F,
    /// A line each: the setting, its value, the rule.
    errors: Vec<String>,
}

impl<F: Fn(&str) -> Option<OsString>> Environment<F> {
    pub fn new(variable: F) -> Self {
        Self {
            variable,
            errors: Vec::new(),
        }
    }

    /// Returns what was made of the values, or the errors if there are any.
    pub fn finish<T>(self, settings: T) -> Result<T, Vec<String>> {
        match self.errors.is_empty() {
            true => Ok(settings),
            false => Err(self.errors),
        }
    }

    /// Parses a value. The name is that of a variable or a flag.
    pub fn parse<T>(&mut self, name: &str, value: &str, parse: Parse<T>) -> Option<T> {
        let parsed = parse(value);
        parsed.map_err(|rule| self.error(name, value, &rule)).ok()
    }

    /// Reads a setting, or the default from the table. After an error the value is a placeholder, and `finish` returns the error.
    pub fn get<T: Default>(&mut self, name: &str, parse: Parse<T>) -> T {
        let value = self.text(name);
        let value = value.as_deref().unwrap_or_else(|| table::default(name));
        self.parse(name, value, parse).unwrap_or_default()
    }

    /// Reads a setting whose default depends on others; `None` if it is not set.
    pub fn optional<T>(&mut self, name: &str, parse: Parse<T>) -> Option<T> {
        let value = self.text(name)?;
        self.parse(name, &value, parse)
    }

    /// Reads a comma-separated list, by default an empty one.
    pub fn list<T>(&mut self, name: &str, parse: Parse<T>) -> Vec<T> {
        let mut items = Vec::new();
        let list = self.text(name).unwrap_or_default();
        for item in list.split(',').map(str::trim) {
            let item = match item {
                "" if list.is_empty() => break,
                "" => self.parse(name, &list, |_| Err("it has an empty item".into())),
                item => self.parse(name, item, parse),
            };
            let Some(item) = item else {
                break;
            };
            items.push(item);
        }
        items
    }

    /// Reads the variables that a list names, each with its value if it is set.
    pub fn variables(&mut self, name: &str) -> Vec<(String, Option<String>)> {
        let mut variables = Vec::<(String, Option<String>)>::new();
        for variable in self.list(name, parse_variable_name) {
            let value = (self.variable)(&variable).map(OsString::into_string);
            let Ok(value) = value.transpose() else {
                let rule = format!("the value of {variable} is not UTF-8");
                self.error(name, &variable, &rule);
                continue;
            };
            if variables.iter().all(|(name, _)| *name != variable) {
                variables.push((variable, value));
            }
        }
        variables
    }

    /// Returns the value of a variable that is set and not empty.
    fn text(&self, name: &str) -> Option<String> {
        let value = (self.variable)(name).filter(|value| !value.is_empty())?;
        Some(value.to_string_lossy().into_owned())
    }

    fn error(&mut self, name: &str, value: &str, rule: &str) {
        let value = escape_control(value);
        self.errors.push(format!("{name}={value}: {rule}"));
    }
}
