package predictor

import (
	"math"

	"github.com/usp-project/usp/record"
)

// The places of the fields in the schema's layout order.
const (
	fieldCusumPos = iota
	fieldCusumNeg
	fieldCusumVar
	fieldThreshold
	fieldEntropy
	fieldLawEntropy
	fieldDiffusionEntropy
	fieldMixtureShare
	fieldFlags
	fieldOTCost
	fieldFreeEnergy
	fieldEpsilon
	fieldResidual
	fieldGap
	fieldIterations
	fieldRelVolatility
	fieldKurtosis
	fieldHolder
	fieldHolderError
	fieldScale
	fieldWeights // of SchemaWithWeights alone; behind it, or in its place, stand the two digest fields
)

// Schema returns the telemetry schema of a predictor with that many experts. There is no field for an observation, a
// forecast or a forecast error. The digest fields are the weights and the transport cost. It panics if experts is not
// between 1 and record.MaxElements − 64.
func Schema(experts int) *record.Schema {
	s, err := record.NewSchema("usp.predictor.v2",
		record.Field{Name: "cusum_pos", Class: record.Metric, Unit: "sd"},
		record.Field{Name: "cusum_neg", Class: record.Metric, Unit: "sd"},
		record.Field{Name: "cusum_var", Class: record.Metric, Unit: "sd"},
		record.Field{Name: "threshold", Class: record.Metric, Unit: "sd"},
		record.Field{Name: "entropy", Class: record.Metric, Unit: "nat"},
		record.Field{Name: "law_entropy", Class: record.Metric, Unit: "nat"},
		record.Field{Name: "diffusion_entropy", Class: record.Metric, Unit: "nat"},
		record.Field{Name: "mixture_share", Class: record.Metric},
		record.Field{Name: "flags", Class: record.Flag, Type: record.Uint64},
		record.Field{Name: "ot_cost", Class: record.Metric},
		record.Field{Name: "free_energy", Class: record.Metric},
		record.Field{Name: "epsilon", Class: record.Metric},
		record.Field{Name: "residual", Class: record.Metric},
		record.Field{Name: "gap", Class: record.Metric},
		record.Field{Name: "iterations", Class: record.Metric, Type: record.Uint64},
		record.Field{Name: "rel_volatility", Class: record.Metric},
		record.Field{Name: "kurtosis", Class: record.Metric},
		record.Field{Name: "holder", Class: record.Metric},
		record.Field{Name: "holder_se", Class: record.Metric},
		record.Field{Name: "scale", Class: record.Metric, Unit: "value"},
		record.Field{Name: "rho", Class: record.Digest, Len: experts},
		record.Field{Name: "ot_cost_digest", Class: record.Digest},
	)
	if err != nil {
		panic("predictor: " + err.Error())
	}
	return s
}

// SchemaWithWeights is Schema with one more metric, weights: the weight of each expert, to the bit. From one step to the
// next it tells by how much the experts' losses differ. It panics if experts is not between 1 and
// (record.MaxElements − 64)/2.
func SchemaWithWeights(experts int) *record.Schema {
	s := Schema(experts)
	s, err := record.NewSchema(s.Name()+".weights", append(s.Fields(), record.Field{Name: "weights", Class: record.Metric, Len: experts})...)
	if err != nil {
		panic("predictor: " + err.Error())
	}
	return s
}

// Fill puts out into v, whose schema is Schema or SchemaWithWeights of len(out.Weights). The scale and the sum of the
// variance chart are rounded to about 1 %, so that their growth from step to step does not give away the error between
// them.
func Fill(v *record.Values, out *Output) {
	v.SetFloat64(fieldCusumPos, out.CusumPos)
	v.SetFloat64(fieldCusumNeg, out.CusumNeg)
	v.SetFloat64(fieldCusumVar, coarse(out.CusumVar))
	v.SetFloat64(fieldThreshold, out.Threshold)
	v.SetFloat64(fieldEntropy, out.Entropy)
	v.SetFloat64(fieldLawEntropy, out.LawEntropy)
	v.SetFloat64(fieldDiffusionEntropy, out.DiffusionEntropy)
	v.SetFloat64(fieldMixtureShare, out.MixtureShare)
	v.SetUint64(fieldFlags, out.Flags)
	v.SetFloat64(fieldOTCost, out.OTCost)
	v.SetFloat64(fieldFreeEnergy, out.FreeEnergy)
	v.SetFloat64(fieldEpsilon, out.Epsilon)
	v.SetFloat64(fieldResidual, out.Residual)
	v.SetFloat64(fieldGap, out.Gap)
	v.SetUint64(fieldIterations, out.Iterations)
	v.SetFloat64(fieldRelVolatility, out.RelVolatility)
	v.SetFloat64(fieldKurtosis, out.Kurtosis)
	v.SetFloat64(fieldHolder, out.Holder)
	v.SetFloat64(fieldHolderError, out.HolderError)
	v.SetFloat64(fieldScale, coarse(out.Scale))
	rho := v.Schema().Len() - 2
	if rho > fieldWeights {
		v.SetFloat64s(fieldWeights, out.Weights)
	}
	v.SetFloat64s(rho, out.Weights)
	v.SetFloat64(rho+1, out.OTCost)
}

// coarse rounds x to seven significant bits.
func coarse(x float64) float64 {
	fraction, exponent := math.Frexp(x)
	return math.Ldexp(math.Floor(float64(fraction*128)+0.5), exponent-7)
}
