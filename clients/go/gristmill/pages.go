package gristmill

import "fmt"

// pageSize is the most that the registry gives in one page.
const pageSize = 1000

// pages reads page after page until there is none left.
func pages[T any](next func(token string) ([]T, string, error)) ([]T, error) {
	var found []T
	token := ""
	for {
		page, following, err := next(token)
		if err != nil {
			return nil, err
		}
		found = append(found, page...)
		if following == "" {
			return found, nil
		}
		token = following
	}
}

func versionName(model string, version uint32) string {
	return fmt.Sprintf("%s/versions/%d", modelName(model), version)
}

func aliasName(model, alias string) string { return modelName(model) + "/aliases/" + alias }

func policyName(model string) string { return modelName(model) + "/trafficPolicy" }
