"""The zoo's workloads in sizes that a test can run."""

SMALL = {
    "rnnlm": "rnnlm:hidden=16,steps=3,vocabulary=20,batch=4",
    "nmt": "nmt:hidden=16,steps=3,vocabulary=20,batch=4",
    "inception_v3": "inception_v3:batch=2,image=75,classes=10,aux=0",
    "resnet50": "resnet50:batch=2,image=32,classes=10",
    "nasnet": "nasnet:batch=2,image=32,cells=2,filters=8,classes=10",
    "transformer_lm": "transformer_lm:batch=2,layers=2,hidden=16,heads=2,length=8,vocabulary=20",
    "bert": "bert:batch=2,layers=2,hidden=16,heads=2,length=8,masked=2,vocabulary=20",
    "moe_lm": "moe_lm:batch=2,experts=4,layers=2,hidden=16,heads=2,length=8,vocabulary=20",
    "dlrm": "dlrm:batch=16,rows=100,width=8",
}
