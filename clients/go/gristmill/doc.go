// Package gristmill is the Go client of the Gristmill model-serving suite: the
// classifier, the generator and the model registry behind one [Client].
//
// Every method takes a context first. A context without a deadline gets the
// client's default one, so no call waits for ever. Calls that the contract
// declares free of side effects or idempotent are tried again, a bounded number
// of times, when no server could be reached. Whatever a server refuses comes
// back as an [*Error] with a machine-readable reason.
//
// The methods wrap what most callers need. The generated stubs over the same
// connections, with the same deadlines, retries and errors, are given by
// [Client.Classifier], [Client.Generator] and [Client.Registry].
package gristmill
