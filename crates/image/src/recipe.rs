//! Recipes: which release and which packages make an image, as TOML. Some are in the program; users write their own.
//!
//! ```toml
//! [recipe]
//! name = "development"
//! debian = "bookworm"
//! include = ["git", "openssh-server"]
//! ```

use serde::Deserialize;

/// Those that are in the program, by name.
const NAMED: [(&str, &str); 1] = [("development", include_str!("../recipes/development.toml"))];

/// No recipe is longer, nor names more packages.
const LONGEST: usize = 64 << 10;
const MOST_PACKAGES: usize = 2000;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What the image is called when nobody says another name.
    pub name: Option<String>,
    /// A Debian release.
    pub debian: String,
    /// Packages on top of the base that boots.
    pub include: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    recipe: Recipe,
}

#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("there is no recipe {0:?} in the program; there is {names}", names = names())]
    Unknown(String),
    #[error("it is longer than {LONGEST} bytes, or names more than {MOST_PACKAGES} packages")]
    TooLong,
    #[error("it is no recipe")]
    Form(#[source] toml::de::Error),
}

impl Recipe {
    /// # Errors
    /// When the program has none of that name.
    pub fn named(name: &str) -> Result<Self, RecipeError> {
        match NAMED.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::parse(text),
            None => Err(RecipeError::Unknown(name.chars().take(100).collect())),
        }
    }

    /// # Errors
    /// When the text is no recipe. Names of releases and packages are checked by who uses them.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        if text.len() > LONGEST {
            return Err(RecipeError::TooLong);
        }
        let Document { recipe } = toml::from_str(text).map_err(RecipeError::Form)?;
        if recipe.include.len() > MOST_PACKAGES {
            return Err(RecipeError::TooLong);
        }
        Ok(recipe)
    }
}

fn names() -> String {
    NAMED.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::reasons;

    #[test]
    fn every_recipe_of_the_program_can_be_built_as_far_as_names_go() {
        for (name, _) in NAMED {
            let recipe = Recipe::named(name).unwrap();
            assert_eq!(recipe.name.as_deref(), Some(name));
            for package in &recipe.include {
                crate::apt::check_package_name(package).unwrap();
            }
            let mut distinct = recipe.include.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), recipe.include.len(), "{name} names a package twice");
        }
    }

    #[test]
    fn what_is_no_recipe_is_refused_with_the_reason() {
        let refused = |text: &str| reasons(&Recipe::parse(text).unwrap_err());
        assert!(refused("[recipe]\ninclude = []").contains("debian"));
        assert!(refused("[recipe]\ndebian = 'a'\ninclude = []\nrun = 'x'").contains("run"));
        assert!(refused("debian").contains("no recipe"));
        assert!(refused(&" ".repeat(LONGEST + 1)).contains("longer"));
        assert!(reasons(&Recipe::named("kitchen").unwrap_err()).contains("development"));
    }
}
